"""Comparisons: each system's settings chosen on validation, then all seeds on test, system beside system.

The folder of a comparison::

    runs/STEP-DIGEST/                       the steps of all trials and runs, named by what they were asked for
    requests.json                           how long a request takes, by the digest of the model
    workers.log                             what the processes printed
    compare.json, compare.md, compare.html  what the systems reached
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from reeltalk.artifacts import read_manifest, reading_file, write_json
from reeltalk.experiments.comparison_page import page
from reeltalk.experiments.comparison_text import markdown
from reeltalk.experiments.experiment import ExperimentSettings
from reeltalk.experiments.figures import standings_of
from reeltalk.experiments.flows import Flow, Line, floor_flow, line_flow
from reeltalk.experiments.jobs import Job, Timing, do
from reeltalk.experiments.outcome import Cell, facts_of
from reeltalk.experiments.show import headline_of
from reeltalk.experiments.standings import Standings
from reeltalk.experiments.workers import Workers
from reeltalk.training.start import PRETRAINED

DOCUMENT, TABLES, PAGE = "compare.json", "compare.md", "compare.html"
REQUESTS, LOG = "requests.json", "workers.log"

Tell = Callable[[str], None]
Processes = Workers[Job | Timing, Cell | float | str]


def run_comparison(experiment: ExperimentSettings, *, out: Path, jobs: int = 1, tell: Tell = print) -> Standings:
    """Run a comparison in the folder `out`, `jobs` processes beside one another; `tell` gets a line a finished job.

    What fails is told in the result and stops nothing else. Interrupted, the same call goes on. As processes are
    started afresh, a script that calls this does so under ``if __name__ == "__main__"``.
    """
    out.mkdir(parents=True, exist_ok=True)
    lines = [Line(data, system) for data in experiment.of_data for system in experiment.of_systems]
    floors: dict[str, Cell] = {}
    flows = [
        *(floor_flow(experiment, data, floors, out=out) for data in experiment.of_data),
        *(line_flow(experiment, line, out=out) for line in lines),
    ]
    with Workers(do, count=jobs, log=out / LOG) as workers:
        _drive(flows, workers, tell)
    with Workers(do, count=1, log=out / LOG) as workers:  # alone, with all cores
        milliseconds = _time_requests(lines, workers, out, tell)
    found = standings_of(experiment, lines, floors=floors, milliseconds=milliseconds, jobs=jobs)
    write_json(out / DOCUMENT, asdict(found))
    (out / TABLES).write_text(markdown(found), encoding="utf-8")
    (out / PAGE).write_text(page(found), encoding="utf-8")
    return found


def _drive(flows: Sequence[Flow], workers: Processes, tell: Tell) -> None:
    """Let each flow go on as soon as the jobs that it waits for are done; a job that several wait for is done once."""
    done: dict[str, Cell] = {}
    asked: set[str] = set()
    waiting = {flow: next(flow) for flow in flows}
    while waiting:
        ready = [flow for flow, wanted in waiting.items() if all(job.key in done for job in wanted)]
        for flow in ready:
            try:
                waiting[flow] = flow.send([done[job.key] for job in waiting[flow]])
            except StopIteration:
                del waiting[flow]
        for each in (job for wanted in waiting.values() for job in wanted):
            if each.key not in asked:
                asked.add(each.key)
                workers.put(each)
        if not ready:
            job, cell = workers.take()
            assert isinstance(job, Job)
            if not isinstance(cell, Cell):
                cell = Cell(job.name, job.seed, job.task, {}, error=str(cell))
            done[job.key] = cell
            tell(f"[{len(done)}/{len(asked)}] {job.name}: {_told(job, cell)}")


def _told(job: Job, cell: Cell) -> str:
    """What came of a job, in a few words."""
    if cell.error is not None:
        return f"failed: {' '.join(cell.error.split())}"
    facts = facts_of(cell.folders[job.until])
    if job.until in (job.task, PRETRAINED):
        value = facts["best_value"]
        reached = "no validation value" if value is None else f"validation {value:.4f}"
        return f"{reached}, {facts['seconds']:.0f} s"
    if job.until == f"{job.task}-report":
        return ", ".join(
            f"{protocol} {name} {of[name]:.4f}" for protocol, of in facts.items() for name in [headline_of(of)]
        )
    return "done"


def _time_requests(lines: Sequence[Line], workers: Processes, out: Path, tell: Tell) -> dict[str, float]:
    """Milliseconds a request by model folder: one model of each line, one after the other, each only once."""
    path = out / REQUESTS
    with reading_file(path):
        known: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    models = {line.measured[0].folders[line.measured[0].task]: line for line in lines if line.measured}
    digests = {model: read_manifest(Path(model), "model").digest for model in models}
    for model in (model for model in models if digests[model] not in known):
        workers.put(Timing(model))
        _, result = workers.take()
        name = f"{models[model].data}, {models[model].system}: requests"
        if isinstance(result, float):
            known[digests[model]] = result
            write_json(path, known)
        tell(f"{name}: {result:.2f} ms" if isinstance(result, float) else f"{name}: failed: {result}")
    return {model: known[digest] for model, digest in digests.items() if digest in known}
