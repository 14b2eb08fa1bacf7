"""Read a `.env` file: a line that cannot be read is an error, never a setting that is left out."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from relay.contract.errors import ConfigurationError

_PREFIX: Final = "RELAY_"
_SINGLE_QUOTED: Final = re.compile(r"'((?:\\.|[^'\\])*)'", re.DOTALL)
_REFERENCE: Final = re.compile(r"\$\{(?P<name>[^}:]*)(?::-(?P<default>[^}]*))?\}")


class EnvFileError(ConfigurationError):
    """The file, or one of its lines, cannot be read. `value` names the line; the message does not quote it."""

    def __str__(self) -> str:
        return f"{self.variable}{f', {self.value}' if self.value else ''}: {self.allowed}"


def read_env_file(path: str | Path | None, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that the file sets; none if there is no such file, or if `path` is None.

    `${NAME}` and `${NAME:-otherwise}` stand for values of earlier lines and of `environ`, but not in single quotes.
    Raises EnvFileError.
    """
    if path is None:
        return {}
    try:
        # A byte order mark, as some editors write it, is no part of the first name.
        text = Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig")  # noqa: PTH111 - works without a home
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else str(error)
        raise EnvFileError(
            str(path), "", f"it cannot be read ({cause}); give a UTF-8 file of NAME=value lines"
        ) from error
    values: dict[str, str] = {}
    for line, name, value, in_single_quotes in _assignments(str(path), text):
        values[name] = value if in_single_quotes else _resolved(str(path), line, name, value, {**environ, **values})
    return values


def _assignments(path: str, text: str) -> Iterator[tuple[int, str, str, bool]]:
    """Of each assignment: the number of its line, the name, the value, and whether that is in single quotes."""
    # Imported here: job runners import this module through `relay.producer`, and they read no `.env` file.
    import io  # noqa: PLC0415

    from dotenv.parser import parse_stream  # noqa: PLC0415

    for binding in parse_stream(io.StringIO(text)):
        source = binding.original.string.lstrip()
        line = binding.original.line + binding.original.string[: -len(source) or None].count("\n")
        if binding.error:
            raise _unreadable(path, line)
        if binding.key is None:
            continue
        if binding.key.upper().startswith(_PREFIX) and (binding.value is None or "\n" in source.rstrip()):
            raise _unreadable(path, line)
        quoted = _SINGLE_QUOTED.match(source.partition("=")[2].lstrip())
        # The parser takes a backslash as an escape also in single quotes; a shell does not.
        value = quoted[1].replace("\\'", "'") if quoted else binding.value or ""
        yield line, binding.key, value, bool(quoted)


def _resolved(path: str, line: int, name: str, value: str, known: Mapping[str, str]) -> str:
    def replacement(reference: re.Match[str]) -> str:
        found = known.get(reference["name"]) or reference["default"]
        if found is None and name.upper().startswith(_PREFIX):
            problem = f"there is no variable {ascii(reference['name'])[1:-1]} to put into {ascii(name)[1:-1]}"
            raise EnvFileError(
                path, f"line {line}", f"{problem}; put a value that contains ${{...}} into single quotes"
            )
        return found or ""

    return _REFERENCE.sub(replacement, value)


def _unreadable(path: str, line: int) -> EnvFileError:
    return EnvFileError(path, f"line {line}", "it cannot be read; write NAME=value, and close each quote on its line")
