"""Looking inside: what a model reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reeltalk.cli.app import Config, DatasetFolder, Set, app, as_task
from reeltalk.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from reeltalk.llm.prompts import Order
    from reeltalk.llm.settings import AlignSettings


@app.command()
def prompt(
    dataset: DatasetFolder,
    user: Annotated[str, typer.Option("--user", metavar="KEY", help="Whose histories.")],
    task: Annotated[str, typer.Option("--task", metavar="item|comment", help="What is asked for.")] = "item",
    order: Annotated[
        str, typer.Option("--order", metavar="items_first|records_first", help="Of the two histories.")
    ] = "items_first",
    item: Annotated[
        str | None,
        typer.Option(
            "--item", metavar="KEY", help="Comment task: what is watched.  [default: the user's last comment record's]"
        ),
    ] = None,
    llm: Annotated[
        str | None, typer.Option("--llm", help="minilm (offline), a folder, or a model's id.  [default: minilm]")
    ] = None,
    aligned: Annotated[
        Path | None, typer.Option("--aligned", metavar="DIR", help="Folder that `reeltalk align` wrote.")
    ] = None,
    generate: Annotated[bool, typer.Option("--generate", help="Also print what the LLM writes.")] = False,
    config: Config = None,
    overrides: Set = None,
) -> None:
    """Show what the LLM recommender reads of a user: the instruction on stdout, its figures on stderr."""
    from reeltalk.data.dataset import Dataset
    from reeltalk.llm.show import show_prompt

    chosen = [] if llm is None else [f"llm.name={json.dumps(llm)}"]
    settings = _settings(aligned, config, [*(overrides or []), *chosen])
    shown = show_prompt(
        Dataset.load(dataset), user, settings=settings, task=as_task(task), order=_as_order(order), item=item
    )
    typer.echo(shown.text)
    facts = {
        "task": task,
        "order": order,
        "instruction_tokens": shown.prompt.instruction_length,
        "max_tokens": shown.max_tokens,
        "dropped_events": shown.prompt.dropped_events,
        "shortened_texts": shown.prompt.shortened_texts,
    }
    typer.echo(", ".join(f"{name}: {value}" for name, value in facts.items()), err=True)
    if generate:
        from reeltalk.llm.align import LLM
        from reeltalk.llm.recommender import LLMRecommender

        if aligned is None:
            recommender = LLMRecommender(settings.llm, dim=settings.model.dim)
        else:
            recommender = LLMRecommender.load(aligned / LLM)
        typer.echo(recommender.generate(shown.prompt, max_new_tokens=settings.prompt.max_text_tokens))


def _settings(aligned: Path | None, config: Path | None, overrides: Sequence[str]) -> AlignSettings:
    """The settings that an aligned LLM was trained with, else the given ones."""
    from reeltalk.config import load_settings
    from reeltalk.llm.settings import AlignSettings
    from reeltalk.training.system import CONFIG

    if aligned is None:
        return load_settings(AlignSettings, file=config, overrides=overrides)
    if config is not None or overrides:
        raise ConfigError("--aligned DIR brings the settings it was made with; leave out --llm, --config and --set")
    file = aligned / CONFIG
    if not file.is_file():
        raise ArtifactError(f"{file} does not exist; give --aligned a folder that `reeltalk align` wrote")
    return load_settings(AlignSettings, file=file)


def _as_order(name: object) -> Order:
    if name == "items_first" or name == "records_first":
        return name
    raise ConfigError(f"--order {name} is unknown; choices: items_first, records_first")
