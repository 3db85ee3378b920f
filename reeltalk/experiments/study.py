"""Studies: variants of one chain, each with several seeds, side by side.

The folder of a study::

    runs/STEP-DIGEST/             the steps, named by what they were asked for: variants share what they have in common
    variants/NAME/seed-N.json     which of these folders a variant's run is made of, and what stopped it
    study.json, study.md          what they reached
    study.html                    curves, where the study has an axis
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from reeltalk.artifacts import write_json
from reeltalk.data.dataset import Task
from reeltalk.errors import ConfigError, ReeltalkError, all_problems
from reeltalk.experiments.chain import ChainSettings, load_chain
from reeltalk.experiments.outcome import Cell, Study, study_of
from reeltalk.experiments.runner import Made, Runner, error_line
from reeltalk.experiments.show import curves_page, markdown

DOCUMENT, TEXT, PAGE = "study.json", "study.md", "study.html"
_NAME = re.compile(r"\w[\w.+-]*")


@dataclass(frozen=True)
class Plan:
    """What a study compares: the overrides of each variant; the others are held against the first.

    segments: parts of the targets that are shown apart, as "items.unseen". points: where each variant stands on the
    `axis` of a curve, for variants that differ in a number.
    """

    variants: Mapping[str, Sequence[str]]
    segments: Sequence[str] = ()
    axis: str = ""
    points: Mapping[str, int] = field(default_factory=dict)


def run_study(base: ChainSettings, plan: Plan, *, seeds: Sequence[int], out: Path) -> Study:
    """Run every variant of a plan with every seed, and write what they reached to `out`.

    A run that fails is told in the result and stops no other. Interrupted, the same call goes on. Raises ConfigError
    that tells every variant whose name or overrides cannot be used.
    """
    chains = _chains(base, plan, seeds)
    runner = Runner(lambda step: out / "runs" / f"{step.name}-{step.digest}")
    cells = []
    for (variant, seed), chain in chains.items():
        of_run = []
        for task in chain.tasks:
            of_run.append(run_cell(runner.run(chain, task), task, variant=variant, seed=seed))
            path = out / "variants" / variant / f"seed-{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(
                path, {"overrides": plan.variants[variant], "tasks": {each.task: asdict(each) for each in of_run}}
            )
        cells += of_run
    study = study_of(cells, variants=plan.variants, seeds=seeds, segments=plan.segments)
    write_json(out / DOCUMENT, asdict(study))
    (out / TEXT).write_text(markdown(study), encoding="utf-8")
    if plan.points:
        (out / PAGE).write_text(curves_page(study, axis=plan.axis, points=plan.points), encoding="utf-8")
    return study


def _chains(base: ChainSettings, plan: Plan, seeds: Sequence[int]) -> dict[tuple[str, int], ChainSettings]:
    """The settings of every run: all variants with the first seed, then with the next."""
    chains, problems = {}, []
    if not plan.variants or not seeds:
        problems.append(f"{len(plan.variants)} variants and {len(seeds)} seeds; give at least one of each")
    for seed in seeds:
        for variant, overrides in plan.variants.items():
            try:
                chains[variant, seed] = _seeded(load_chain(base=base, overrides=overrides), seed)
            except ConfigError as error:
                problems += [f"variant {variant}: {error}"] if seed == seeds[0] else []
    problems += [
        f"variant {name!r} names a folder; use letters, digits, '.', '+', '-' and '_'"
        for name in plan.variants
        if not _NAME.fullmatch(name)
    ]
    all_problems(ConfigError, "the study cannot be run:", problems)
    return chains


def _seeded(chain: ChainSettings, seed: int) -> ChainSettings:
    trained = ["finetune.*", *(name for name in ("align", "pretrain") if getattr(chain, name) is not None)]
    return load_chain(base=chain, overrides=[f"{section}.train.seed={seed}" for section in trained])


def run_cell(steps: Iterable[Made], task: Task, *, variant: str, seed: int, until: str | None = None) -> Cell:
    """Go through the steps of a run, to the end or `until` one of that name; what stops it is told in the cell."""
    folders: dict[str, str] = {}
    try:
        for made in steps:
            folders[made.step] = str(made.folder)
            if made.step == until:
                break
    except Exception as error:
        trace = None if isinstance(error, ReeltalkError) else traceback.format_exc()
        return Cell(variant, seed, task, folders, error=error_line(error), trace=trace)
    return Cell(variant, seed, task, folders)
