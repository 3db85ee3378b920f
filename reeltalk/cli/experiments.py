"""What stands on the steps: whole chains and studies, each from one file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from reeltalk.cli.app import Out, Set, app
from reeltalk.cli.printing import print_comparisons, print_facts, print_grids, print_step
from reeltalk.errors import ConfigError, ReeltalkError, nearest

MEND = "as the table tells; mend what stopped them and run again: what is done is kept"
FULL = ("search.trials=all", "search.rungs=[]")
ChainFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="Settings of a chain as YAML.")]


@app.command()
def train(config: ChainFile, out: Out, overrides: Set = None) -> None:
    """Run the whole chain, from the raw log to the reports; steps that are done are skipped."""
    from reeltalk.experiments.chain import load_chain
    from reeltalk.experiments.runner import run_chain

    for made in run_chain(load_chain(config, overrides=overrides or []), out=out):
        print_step(made.step, made.folder, was_there=made.was_there)


@app.command()
def compare(
    what: Annotated[
        list[Path],
        typer.Argument(metavar="EXPERIMENT.yaml | REPORT_A REPORT_B", help="Systems x data sets, or two reports."),
    ],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder to write, of an experiment.")] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", metavar="N", min=1, help="Trials trained beside one another; default: 1.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Try the whole grid, each trial trained in full, as the paper does.")
    ] = False,
    overrides: Set = None,
) -> None:
    """Choose each system's settings on validation, then test all of them; or paired tests between two reports."""
    if len(what) == 2 and (out is None and jobs is None and not full and not overrides):
        _compare_reports(*what)
    elif len(what) == 1 and out is not None and not what[0].is_dir():
        _compare_systems(what[0], out, jobs or 1, [*(overrides or []), *(FULL if full else ())])
    else:
        raise ConfigError("give two report folders alone, or one experiment's YAML file and --out DIR")


def _compare_reports(run_a: Path, run_b: Path) -> None:
    from reeltalk.evaluation.significance import compare as run

    print_comparisons(run(run_a, run_b), str(run_a), str(run_b))


def _compare_systems(file: Path, out: Path, jobs: int, overrides: list[str]) -> None:
    from reeltalk.experiments.comparison import run_comparison
    from reeltalk.experiments.comparison_text import metric_grids, other_grids
    from reeltalk.experiments.loading import load_experiment

    experiment = load_experiment(file, overrides=overrides)
    found = run_comparison(experiment, out=out, jobs=jobs, tell=partial(typer.echo, err=True))
    print_grids([*metric_grids(found), *other_grids(found)])
    print_facts(out, {"table": str(out / "compare.md"), "page": str(out / "compare.html")})
    if found.missing:
        raise ReeltalkError(f"{len(found.missing)} parts of the comparison failed, {MEND}")


@app.command()
def ablate(
    config: ChainFile,
    out: Out,
    study: Annotated[
        str,
        typer.Option(
            "--study",
            metavar="ablations|steps|unseen|comments|backbones",
            help="The paper's table 5, figure 3 (with --steps), figure 4; which comments; which LLM (with --llms).",
        ),
    ] = "ablations",
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="How often each variant is trained.")] = 3,
    steps: Annotated[
        str | None, typer.Option("--steps", metavar="N,N,..", help="Numbers of alignment steps, for --study steps.")
    ] = None,
    llms: Annotated[
        str | None, typer.Option("--llms", metavar="NAME,NAME,..", help="LLMs, for --study backbones.")
    ] = None,
    align_once: Annotated[
        bool, typer.Option("--align-once", help="One alignment a variant; the seeds are those of fine-tuning.")
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="Runs trained beside one another.")] = 1,
    overrides: Set = None,
) -> None:
    """Train variants of a chain that each lack a part, and hold them against the whole; run again, it goes on.

    Exit status 2 where a run failed: the table, which has what the others reached, tells why.
    """
    from reeltalk.experiments.ablations import ablations, alignment_steps, backbones, comments, unseen
    from reeltalk.experiments.chain import load_chain
    from reeltalk.experiments.show import grids
    from reeltalk.experiments.study import run_study

    base = load_chain(config, overrides=overrides or [])
    if (steps is not None) != (study == "steps"):
        raise ConfigError("--steps and --study steps go together; give both, as in --study steps --steps 0,1000,5000")
    if (llms is not None) != (study == "backbones"):
        raise ConfigError("--llms and --study backbones go together; give both, as in --study backbones --llms a,b")
    if study == "steps":
        plan = alignment_steps(base, _numbers(str(steps)))
    elif study == "backbones":
        plan = backbones(base, str(llms).split(","))
    elif study in (plans := {"ablations": ablations, "unseen": unseen, "comments": comments}):
        plan = plans[study](base)
    else:
        raise ConfigError(f"--study {study!r} is unknown;{nearest(study, [*plans, 'steps', 'backbones'])}")
    found = run_study(
        base, plan, seeds=range(seeds), out=out, jobs=jobs, align_once=align_once, tell=partial(typer.echo, err=True)
    )
    print_grids(grids(found))
    print_facts(out, {"table": str(out / "study.md")})
    if found.failures:
        raise ReeltalkError(f"{len(found.failures)} of {len(found.cells)} runs failed, {MEND}")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--steps {text!r}: expected whole numbers with commas between, as in 0,1000,5000") from None
