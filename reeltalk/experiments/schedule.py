"""The order of jobs: flows yield the jobs that they need next and are sent what came of them; each job is done once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Protocol

from reeltalk.artifacts import facts_of
from reeltalk.experiments.jobs import Job
from reeltalk.experiments.outcome import Cell
from reeltalk.experiments.show import headline_of
from reeltalk.experiments.workers import Died
from reeltalk.training.start import PRETRAINED

Flow = Generator[list[Job], list[Cell], None]
Tell = Callable[[str], None]


class Doer(Protocol):
    """Whatever does jobs, `Workers` or `Here`."""

    def put(self, job: Job, /) -> None:
        """Queue a job."""

    def take(self) -> tuple[Job, Cell | Died]:
        """Wait for the next job that is done."""


def run_flows(flows: Sequence[Flow], doer: Doer, tell: Tell) -> None:
    """Let each flow go on as soon as the jobs that it waits for are done; a job that several wait for is done once.

    `tell` gets a line a finished job.
    """
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
                doer.put(each)
        if not ready:
            job, cell = doer.take()
            if isinstance(cell, Died):
                cell = Cell(job.name, job.seed, job.task, {}, error=str(cell))
            done[job.key] = cell
            tell(f"[{len(done)}/{len(asked)}] {job.name}: {_told(job, cell)}")


def _told(job: Job, cell: Cell) -> str:
    """What came of a job, in a few words."""
    if cell.error is not None:
        return f"failed: {' '.join(cell.error.split())}"
    facts = facts_of(Path(cell.folders[job.until]))
    if job.until in (job.task, PRETRAINED):
        value = facts["best_value"]
        reached = "no validation value" if value is None else f"validation {value:.4f}"
        return f"{reached}, {facts['seconds']:.0f} s"
    if job.until == f"{job.task}-report":
        return ", ".join(
            f"{protocol} {name} {of[name]:.4f}" for protocol, of in facts.items() for name in [headline_of(of)]
        )
    return "done"
