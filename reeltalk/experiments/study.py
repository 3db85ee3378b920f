"""Studies: variants of one chain, each with several seeds, side by side.

The folder of a study::

    runs/STEP-DIGEST/             the steps, named by what they were asked for: variants share what they have in common
    variants/NAME/seed-N.json     which of these folders a variant's run is made of, and what stopped it
    study.json, study.md          what they reached
    study.html                    curves, where the study has an axis
    workers.log                   what the processes printed, where there are several
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from reeltalk.artifacts import write_json
from reeltalk.data.dataset import Task
from reeltalk.errors import ConfigError, all_problems
from reeltalk.experiments.chain import ChainSettings, load_chain
from reeltalk.experiments.jobs import Job, do, new_runner
from reeltalk.experiments.outcome import Cell, Study, study_of
from reeltalk.experiments.runner import stages_of
from reeltalk.experiments.schedule import Flow, Tell, run_flows
from reeltalk.experiments.show import curves_page, markdown
from reeltalk.experiments.workers import Here, Workers
from reeltalk.lock import only_writer

DOCUMENT, TEXT, PAGE, LOG = "study.json", "study.md", "study.html", "workers.log"
_NAME = re.compile(r"\w[\w.+-]*")

_Key = tuple[str, int, Task]  # variant, seed, task


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


def run_study(
    base: ChainSettings,
    plan: Plan,
    *,
    seeds: Sequence[int],
    out: Path,
    jobs: int = 1,
    align_once: bool = False,
    tell: Tell = print,
) -> Study:
    """Run every variant of a plan with every seed, and write what they reached to `out`.

    jobs: processes beside one another; one is this process, several are started afresh, so a script that asks for them
    does so under ``if __name__ == "__main__"``. align_once: a variant's alignment (or pre-training) keeps the seed that
    `base` has, and the seeds are those of fine-tuning alone. `tell` gets a line a finished job.

    A run that fails is told in the result and stops no other. Interrupted, the same call goes on. Raises ConfigError
    that tells every variant whose name or overrides cannot be used, ArtifactError if another run writes `out`.
    """
    chains = _chains(base, plan, seeds, align_once=align_once)
    with only_writer(out):
        cells: dict[_Key, Cell] = {}
        flows = [
            _flow((variant, seed, task), chain, cells, plan, out)
            for (variant, seed), chain in chains.items()
            for task in chain.tasks
        ]
        if jobs == 1:
            run_flows(flows, Here(partial(do, runner=new_runner(out))), tell)
        else:
            with Workers(do, count=jobs, log=out / LOG) as workers:
                run_flows(flows, workers, tell)
        in_order = [cells[variant, seed, task] for (variant, seed), chain in chains.items() for task in chain.tasks]
        study = study_of(in_order, variants=plan.variants, seeds=seeds, segments=plan.segments)
        write_json(out / DOCUMENT, asdict(study))
        (out / TEXT).write_text(markdown(study), encoding="utf-8")
        if plan.points:
            (out / PAGE).write_text(curves_page(study, axis=plan.axis, points=plan.points), encoding="utf-8")
        return study


def _flow(key: _Key, chain: ChainSettings, cells: dict[_Key, Cell], plan: Plan, out: Path) -> Flow:
    """Run one task of one variant with one seed, a stage at a time; what came of it goes to `cells` and its file."""
    variant, seed, task = key
    for until in stages_of(chain, task):
        name = f"{variant}, seed {seed}: {until}"
        (cell,) = yield [Job.of(chain, name=name, task=task, seed=seed, until=until, out=out)]
        if cell.error is not None:
            break
    cells[key] = replace(cell, variant=variant, seed=seed, task=task)
    of_run = {each.task: asdict(each) for each in cells.values() if (each.variant, each.seed) == (variant, seed)}
    path = out / "variants" / variant / f"seed-{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"overrides": plan.variants[variant], "tasks": of_run})


def _chains(
    base: ChainSettings, plan: Plan, seeds: Sequence[int], *, align_once: bool
) -> dict[tuple[str, int], ChainSettings]:
    """The settings of every run: all variants with the first seed, then with the next."""
    chains, problems = {}, []
    if not plan.variants or not seeds:
        problems.append(f"{len(plan.variants)} variants and {len(seeds)} seeds; give at least one of each")
    for seed in seeds:
        for variant, overrides in plan.variants.items():
            try:
                chain = load_chain(base=base, overrides=overrides)
                chains[variant, seed] = _seeded(chain, seed, align_once=align_once)
            except ConfigError as error:
                problems += [f"variant {variant}: {error}"] if seed == seeds[0] else []
    problems += [
        f"variant {name!r} names a folder; use letters, digits, '.', '+', '-' and '_'"
        for name in plan.variants
        if not _NAME.fullmatch(name)
    ]
    all_problems(ConfigError, "the study cannot be run:", problems)
    return chains


def _seeded(chain: ChainSettings, seed: int, *, align_once: bool) -> ChainSettings:
    starts = [] if align_once else [name for name in ("align", "pretrain") if getattr(chain, name) is not None]
    return load_chain(base=chain, overrides=[f"{section}.train.seed={seed}" for section in ("finetune.*", *starts)])
