"""Comparisons: each system's settings chosen on validation, then all seeds on test, system beside system.

The folder of a comparison::

    runs/STEP-DIGEST/                       the steps of all trials and runs, named by what they were asked for
    requests.json                           how long a request takes, by the digest of the model
    workers.log                             what the processes printed
    compare.json, compare.md, compare.html  what the systems reached
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from reeltalk.artifacts import read_manifest, reading_file, versions, write_json
from reeltalk.experiments.comparison_page import page
from reeltalk.experiments.comparison_text import markdown
from reeltalk.experiments.experiment import ExperimentSettings
from reeltalk.experiments.figures import standings_of
from reeltalk.experiments.flows import Line, floor_flow, line_flow
from reeltalk.experiments.jobs import do, time_requests
from reeltalk.experiments.outcome import Cell
from reeltalk.experiments.schedule import Tell, run_flows
from reeltalk.experiments.standings import Failure, Standings
from reeltalk.experiments.workers import Workers
from reeltalk.lock import only_writer

DOCUMENT, TABLES, PAGE = "compare.json", "compare.md", "compare.html"
REQUESTS, LOG = "requests.json", "workers.log"

Processes = Workers[str, float | str]


def run_comparison(experiment: ExperimentSettings, *, out: Path, jobs: int = 1, tell: Tell = print) -> Standings:
    """Run a comparison in the folder `out`, `jobs` processes beside one another; `tell` gets a line a finished job.

    What fails is told in the result and stops nothing else. Interrupted, the same call goes on. As processes are
    started afresh, a script that calls this does so under ``if __name__ == "__main__"``.

    Raises ArtifactError if another run writes `out`.
    """
    with only_writer(out):
        lines = [Line(data, system) for data in experiment.of_data for system in experiment.of_systems]
        floors: dict[str, Cell] = {}
        # jobs are done in the order asked for: what takes longest first, so that it is not what all wait for in the end
        longest_first = sorted(lines, key=lambda line: _effort(experiment, line))
        flows = [
            *(floor_flow(experiment, data, floors, out=out) for data in experiment.of_data),
            *(line_flow(experiment, line, out=out) for line in longest_first),
        ]
        with Workers(do, count=jobs, log=out / LOG) as workers:
            run_flows(flows, workers, tell)
        with Workers(time_requests, count=1, log=out / LOG) as alone:  # with all cores
            milliseconds, failures = _time_requests(lines, alone, out, tell)
        found = standings_of(experiment, lines, floors=floors, milliseconds=milliseconds, failures=failures, jobs=jobs)
        made_with = {"experiment": experiment.model_dump(mode="json"), "versions": versions()}
        write_json(out / DOCUMENT, asdict(found) | made_with)
        (out / TABLES).write_text(markdown(found), encoding="utf-8")
        (out / PAGE).write_text(page(found), encoding="utf-8")
        return found


def _effort(experiment: ExperimentSettings, line: Line) -> int:
    """0 for what is aligned first, 1 for what is pre-trained first, 2 for the rest."""
    system = experiment.of_systems[line.system]
    return 0 if system.align is not None else 1 if system.pretrain is not None else 2


def _time_requests(
    lines: Sequence[Line], workers: Processes, out: Path, tell: Tell
) -> tuple[dict[str, float], list[Failure]]:
    """Milliseconds a request by model folder: one model of each line, one after the other, each only once."""
    path = out / REQUESTS
    with reading_file(path):
        known: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    models = {line.measured[0].folders[line.measured[0].task]: line for line in lines if line.measured}
    digests = {model: read_manifest(Path(model), "model").digest for model in models}
    failures = []
    for model in (model for model in models if digests[model] not in known):
        workers.put(model)
        _, result = workers.take()
        line = models[model]
        if isinstance(result, float):
            known[digests[model]] = result
            write_json(path, known)
        else:
            failures.append(Failure(line.data, line.system, "requests", str(result)))
        told = f"{result:.2f} ms" if isinstance(result, float) else f"failed: {result}"
        tell(f"{line.data}, {line.system}: requests: {told}")
    return {model: known[digest] for model, digest in digests.items() if digest in known}, failures
