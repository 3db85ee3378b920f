"""What there is: models, sources, settings, versions."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from reeltalk.cli.app import app, as_task
from reeltalk.cli.printing import table_console

if TYPE_CHECKING:
    from pydantic import BaseModel

STEPS = {
    "prepare": ("reeltalk.data.prepare", "PrepareSettings"),
    "encode": ("reeltalk.text.encode", "EncodeSettings"),
    "align": ("reeltalk.llm.settings", "AlignSettings"),
    "evaluate": ("reeltalk.evaluation.protocol", "EvaluationSettings"),
}


@app.command()
def models() -> None:
    """List the models: tasks, what they read, paper."""
    from reeltalk.models import MODELS

    table = Table(Column("model", no_wrap=True), "tasks", "reads", "paper", box=None)
    for name, spec in MODELS.items():
        table.add_row(name, ", ".join(spec.tasks), ", ".join(spec.reads), spec.paper)
    table_console().print(table)


@app.command()
def sources() -> None:
    """List the log formats that `prepare` reads."""
    from reeltalk.data.sources import SOURCES

    table = Table("source", "--raw", box=None)
    for name, source in SOURCES.items():
        table.add_row(name, source.expects)
    table_console().print(table)


@app.command()
def settings(
    step: Annotated[
        str, typer.Argument(help="prepare, encode, align, pretrain, finetune, evaluate, train, compare, or a source.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", help="For pretrain and finetune.  [default: unisrec, lsvcr]")
    ] = None,
    task: Annotated[str, typer.Option("--task", metavar="item|comment", help="For finetune.")] = "item",
) -> None:
    """List what `--set` can change in a step: name, default, meaning."""
    from reeltalk.config import list_settings
    from reeltalk.data.sources import SOURCES
    from reeltalk.errors import ConfigError, nearest

    section = ""
    if step == "finetune":
        from reeltalk.training.settings import finetune_settings

        listed: type[BaseModel] = finetune_settings(model or "lsvcr", as_task(task))
    elif step == "pretrain":
        from reeltalk.training.pretrain import pretrain_settings

        listed = pretrain_settings(model or "unisrec")
    elif step == "train":
        from reeltalk.experiments.chain import chain_settings

        listed = chain_settings()
    elif step == "compare":
        from reeltalk.experiments.experiment import ExperimentSettings

        listed = ExperimentSettings
    elif step in STEPS:
        module, name = STEPS[step]
        listed = getattr(import_module(module), name)
    elif step in SOURCES:
        listed, section = import_module(SOURCES[step].module).Settings, "source."
    else:
        raise ConfigError(
            f"step {step!r} is unknown;{nearest(step, [*STEPS, 'pretrain', 'finetune', 'train', 'compare', *SOURCES])}"
        )
    table = Table(Column("setting", no_wrap=True), "default", "", box=None)
    for row in list_settings(listed, section=section):
        table.add_row(*(Text(cell) for cell in row))
    table_console().print(table)


@app.command()
def version() -> None:
    """Print the versions of reeltalk and of the libraries that results depend on."""
    from reeltalk.artifacts import versions

    for name, number in versions().items():
        typer.echo(f"{name} {number}")
