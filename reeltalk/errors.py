"""Errors that a user can act on: what is wrong, where, the value, the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class ReeltalkError(Exception):
    """Anything a user can mend. The command line prints it without a traceback and exits with status 2.

    `problems` are told one by one where an error holds several.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


class ConfigError(ReeltalkError):
    """A setting is unknown, has the wrong type, or contradicts another."""


class DataError(ReeltalkError):
    """Raw logs or texts break the documented schema."""


class ArtifactError(ReeltalkError):
    """A folder is missing, unfinished, of another kind or version, or does not belong to its parent."""


def all_problems(kind: type[ReeltalkError], heading: str, problems: Iterable[str]) -> None:
    """Raise one error that tells every problem of an input at once; do nothing where there is none."""
    found = list(problems)
    if found:
        raise kind("\n".join([heading, *(f"  - {problem}" for problem in found)]), found)


def nearest(name: str, choices: Iterable[str]) -> str:
    """The tail of an error about an unknown name: the nearest match and all choices."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" did you mean {close[0]!r}?" if close else ""
    return f"{hint} choices: {', '.join(known)}"
