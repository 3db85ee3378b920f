"""What all commands share: the application, its errors, the options that several commands have.

Results go to stdout, progress and errors to stderr. Exit status: 0 done, 2 something to mend, 130 interrupted. Anything
else is a bug and shows its traceback.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from reeltalk.errors import ConfigError, ReeltalkError

if TYPE_CHECKING:
    from reeltalk.data.dataset import Task

MENDABLE, INTERRUPTED = 2, 130
# how polars and safetensors, numpy, and torch say it; the last two know only that less was written than asked
DISK_FULL = re.compile(r"No space left on device|\d+ requested and \d+ written|unexpected pos \d+ vs \d+")


class Commands(TyperGroup):
    """Every command alike turns what a user can mend into a message and an exit status."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except ReeltalkError as error:
            _stop("error: ", str(error), MENDABLE)
        except KeyboardInterrupt:
            way_on = "run the same command again: prepare and evaluate start afresh, the others go on where they were"
            _stop("interrupted; ", f"no unfinished folder will be taken for a whole one; {way_on}", INTERRUPTED)
        except Exception as error:
            message = _disk_problem(error)
            if message is None:
                raise
            _stop("error: ", message, MENDABLE)


def _stop(heading: str, message: str, status: int) -> NoReturn:
    text = Text.assemble((heading, "bold red"), message)  # a Text: no markup and no emoji codes in a user's own words
    Console(stderr=True, highlight=False, soft_wrap=True).print(text)
    raise typer.Exit(status)


def _disk_problem(error: Exception) -> str | None:
    """What to tell where an error says that the disk is full, or that a path cannot be used; else None."""
    cause: BaseException | None = error
    while cause is not None:
        if (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)) or DISK_FULL.search(str(cause)):
            return "the disk is full (no space left on device); free some space and run the same command again"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; give another path, or mend this one"
    return None


app = typer.Typer(
    name="reeltalk",
    cls=Commands,
    help="Recommends the video and the talk under it. Each step reads folders and writes one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DatasetFolder = Annotated[Path, typer.Argument(metavar="DATASET", help="Folder that `reeltalk prepare` wrote.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")]
TextFolder = Annotated[Path | None, typer.Option("--text", metavar="DIR", help="Folder that `reeltalk encode` wrote.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a finished folder.")]
Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings as YAML.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="One setting, as section.field=value; may be repeated."),
]


def as_task(name: object) -> Task:
    """The task of that name; raises ConfigError where there is none."""
    if name == "item" or name == "comment":
        return name
    raise ConfigError(
        f"--task {name} is unknown; choices: comment, item" if name else "give --task item or --task comment"
    )
