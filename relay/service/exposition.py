"""Prometheus' text format, of several workers in one."""

import re
from collections.abc import Iterator, Mapping
from typing import Final

_FAMILY: Final = re.compile(r"# HELP (\S+) .*\n# TYPE .*\n")
_NAME: Final = re.compile(r"^([^\s{]+)(\{?)", re.MULTILINE)


def merge(expositions: Mapping[int, str]) -> str:
    """One exposition of those of several workers, by number: every series gets the label `worker`, each family once.

    They must be as prometheus_client writes them: of each family HELP, TYPE and then all its samples.
    """
    heads: dict[str, str] = {}
    samples: dict[str, list[str]] = {}
    for worker, text in expositions.items():
        for name, head, lines in _families(text):
            heads.setdefault(name, head)
            samples.setdefault(name, []).append(_labelled(lines, worker))
    return "".join(head + "".join(samples[name]) for name, head in heads.items())


def _families(text: str) -> Iterator[tuple[str, str, str]]:
    """Name, the two lines that describe it, and the lines of its samples."""
    found = list(_FAMILY.finditer(text))
    ends = [family.start() for family in found[1:]] + [len(text)]
    for family, end in zip(found, ends, strict=True):
        yield family[1], family[0], text[family.end() : end]


def _labelled(lines: str, worker: int) -> str:
    def label(name: re.Match[str]) -> str:
        return f'{name[1]}{{worker="{worker}"' + ("," if name[2] else "}")

    return _NAME.sub(label, lines)
