"""Child processes that end with their parent."""

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
    """A `preexec_fn` with which the kernel kills the child as soon as this process is gone.

    On Linux only. Elsewhere None: there a child outlives a parent that was killed.

    The kernel watches the *thread* that started the child, so start children from a thread that does not end earlier.
    """
    if sys.platform != "linux":
        return None
    # Looked up here because little is safe between fork and exec.
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def watch_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the kernel was asked
            os._exit(_ORPHANED)

    return watch_parent
