"""What stands on the steps: whole chains and studies, each from one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reeltalk.cli.app import Out, Set, app
from reeltalk.cli.printing import print_step

ChainFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="Settings of a chain as YAML.")]


@app.command()
def train(config: ChainFile, out: Out, overrides: Set = None) -> None:
    """Run the whole chain, from the raw log to the reports; steps that are done are skipped."""
    from reeltalk.experiments.chain import load_chain
    from reeltalk.experiments.runner import run_chain

    for made in run_chain(load_chain(config, overrides=overrides or []), out=out):
        print_step(made.step, made.folder, was_there=made.was_there)
