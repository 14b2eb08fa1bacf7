"""Child processes, and what keeps them from outliving us."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_ORPHANED: Final = 1
"""Exit status of a child whose parent was gone before it could be watched."""


def die_with_parent() -> Callable[[], None] | None:
    """What a child runs before it becomes its program (`preexec_fn`), so that it is killed as soon as we are gone.

    Linux only; elsewhere None, and a child outlives a parent that had no time to end it.

    The kernel watches the *thread* that started the child: start children from a thread that lives on.
    """
    if sys.platform != "linux":
        return None
    # Looked up here because little is safe between fork and exec.
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def watch_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel was asked
            os._exit(_ORPHANED)

    return watch_parent
