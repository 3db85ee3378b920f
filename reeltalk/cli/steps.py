"""The steps: each reads folders and writes one. A command imports the code it runs when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from reeltalk.cli.app import Config, DatasetFolder, Out, Overwrite, Set, TextFolder, app, as_task
from reeltalk.cli.printing import print_facts, print_systems
from reeltalk.errors import ConfigError


@app.command()
def prepare(
    source: Annotated[str, typer.Argument(help="Log format; `reeltalk sources` lists them.")],
    out: Out,
    raw: Annotated[Path | None, typer.Option("--raw", metavar="PATH", help="The raw log.")] = None,
    config: Config = None,
    overrides: Set = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn a raw log into a dataset: ids, histories, splits, saved candidates."""
    from reeltalk.config import load_settings
    from reeltalk.data.prepare import PrepareSettings
    from reeltalk.data.prepare import prepare as run

    settings = load_settings(PrepareSettings, file=config, overrides=overrides or [])
    dataset = run(source, raw=raw, out=out, settings=settings, overwrite=overwrite)
    print_facts(out, dataset.manifest.facts)


@app.command()
def encode(
    dataset: DatasetFolder,
    out: Out,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="minilm (offline), a folder (aligned ones too), or a model's id.")
    ] = None,
    config: Config = None,
    text: Annotated[
        Path | None, typer.Option("--text", metavar="DIR", help="What an aligned folder started from, if it was moved.")
    ] = None,
    overrides: Set = None,
) -> None:
    """Turn every distinct text into a vector, once; texts already in the folder are left alone."""
    from reeltalk.api import Dataset, EncodeSettings, TextTable, load_settings
    from reeltalk.api import encode as run

    chosen = [] if encoder is None else [f"encoder={json.dumps(encoder)}"]
    settings = load_settings(EncodeSettings, file=config, overrides=[*(overrides or []), *chosen])
    start = None if text is None else TextTable.load(text)
    table = run(Dataset.load(dataset), out=out, settings=settings, text=start)
    print_facts(out, table.manifest.facts)


@app.command()
def align(
    dataset: DatasetFolder,
    out: Out,
    text: TextFolder = None,
    llm: Annotated[str | None, typer.Option("--llm", help="minilm (offline), a folder, or a causal LM's id.")] = None,
    config: Config = None,
    overrides: Set = None,
) -> None:
    """Align the sequential model with an LLM (LSVCR stage 1); interrupted and run again, it goes on where it was.

    Without --text the LLM encodes every text first, into a folder beside OUT whose name ends in -text.
    """
    from reeltalk.api import Dataset, EncodeSettings, TextTable, encode, load_settings
    from reeltalk.artifacts import read_manifest
    from reeltalk.llm.align import align as run
    from reeltalk.llm.settings import AlignSettings
    from reeltalk.training.start import ALIGNED

    chosen = [] if llm is None else [f"llm.name={json.dumps(llm)}"]
    settings = load_settings(AlignSettings, file=config, overrides=[*(overrides or []), *chosen])
    if text is None and settings.encoder == "frozen":
        raise ConfigError("encoder=frozen keeps the vectors of an encoder: give --text, which `reeltalk encode` wrote")
    of = Dataset.load(dataset)
    if text is None:
        of_llm = EncodeSettings(
            encoder=settings.llm.name,
            precision=settings.llm.precision,
            trust_remote_code=settings.llm.trust_remote_code,
        )
        table = encode(of, out=out.with_name(f"{out.name}-text"), settings=of_llm)
    else:
        table = TextTable.load(text)
    run(of, text=table, settings=settings, out=out)
    print_facts(out, read_manifest(out, ALIGNED).facts)


@app.command()
def pretrain(
    dataset: DatasetFolder,
    out: Out,
    model: Annotated[str | None, typer.Option("--model", help="unisrec, vqrec or s3rec.  [default: unisrec]")] = None,
    text: TextFolder = None,
    config: Config = None,
    overrides: Set = None,
) -> None:
    """Pre-train a model on a dataset's item histories; interrupted and run again, it goes on where it was."""
    from reeltalk.config import load_settings, read_yaml
    from reeltalk.data.dataset import Dataset
    from reeltalk.text.table import TextTable
    from reeltalk.training.pretrain import pretrain as run
    from reeltalk.training.pretrain import pretrain_settings

    given = read_yaml(config) if config is not None else {}
    name = _asked("--model", model, config, given.get("name")) or "unisrec"
    settings = load_settings(pretrain_settings(name), file=config, overrides=overrides or [])
    table = None if text is None else TextTable.load(text)
    print_facts(out, run(Dataset.load(dataset), text=table, settings=settings, out=out).facts)


@app.command()
def finetune(
    dataset: DatasetFolder,
    out: Out,
    model: Annotated[
        str | None,
        typer.Option("--model", help="`reeltalk models` lists them; or yours, package.module:SPEC.  [default: lsvcr]"),
    ] = None,
    task: Annotated[str | None, typer.Option("--task", metavar="item|comment", help="What is recommended.")] = None,
    text: TextFolder = None,
    aligned: Annotated[
        Path | None, typer.Option("--aligned", metavar="DIR", help="Start from what `reeltalk align` wrote.")
    ] = None,
    pretrained: Annotated[
        Path | None, typer.Option("--pretrained", metavar="DIR", help="Start from what `reeltalk pretrain` wrote.")
    ] = None,
    config: Config = None,
    overrides: Set = None,
) -> None:
    """Train a model for one task; interrupted and run again, it goes on where it was."""
    from reeltalk.artifacts import read_manifest
    from reeltalk.config import load_settings, read_yaml

    if aligned is not None and pretrained is not None:
        raise ConfigError(f"--aligned {aligned} and --pretrained {pretrained}: training starts from one of them")
    given = read_yaml(config) if config is not None else {}
    chosen = as_task(_asked("--task", task, config, given.get("task")))
    name = _asked("--model", model, config, given.get("name")) or "lsvcr"

    from reeltalk.data.dataset import Dataset
    from reeltalk.text.table import TextTable
    from reeltalk.training.finetune import finetune as run
    from reeltalk.training.settings import finetune_settings

    settings = load_settings(finetune_settings(name, chosen), file=config, overrides=overrides or [])
    table = None if text is None else TextTable.load(text)
    run(Dataset.load(dataset), text=table, settings=settings, out=out, start=aligned or pretrained)
    print_facts(out, read_manifest(out, "model").facts)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder that `reeltalk finetune` wrote.")],
    out: Out,
    dataset: Annotated[
        Path | None, typer.Option("--dataset", metavar="DIR", help="Where the model's dataset is, if it was moved.")
    ] = None,
    text: TextFolder = None,
    split: Annotated[str, typer.Option("--split", metavar="test|valid", help="Which targets.")] = "test",
    config: Config = None,
    overrides: Set = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure a model beside the floors of its task; write report.json, per-user values and an HTML page."""
    from reeltalk.api import Dataset, EvaluationSettings, Split, TextTable, evaluate_model, load_settings

    if split not in ("test", "valid"):
        raise ConfigError(f"--split {split} is unknown; choices: test, valid")
    report = evaluate_model(
        model,
        out=out,
        dataset=None if dataset is None else Dataset.load(dataset),
        text=None if text is None else TextTable.load(text),
        split=Split[split.upper()],
        settings=load_settings(EvaluationSettings, file=config, overrides=overrides or []),
        overwrite=overwrite,
    )
    print_systems(report)
    print_facts(out, {"page": str(out / "report.html")})


def _asked(option: str, value: str | None, config: Path | None, held: object) -> str | None:
    """What an option or the file of settings asks for; raises ConfigError where they contradict each other."""
    if value is not None and held is not None and value != held:
        raise ConfigError(f"{option} {value}, but {config} is for {held}; leave the option out, or give another file")
    return value if held is None else str(held)
