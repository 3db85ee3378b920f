"""What a comparison holds: figures over seeds, gains, tests, costs, what failed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from reeltalk.data.dataset import Task
from reeltalk.experiments.flows import Trial

Kind = Literal["ceiling", "floor", "baseline", "ours"]
Figures = dict[str, dict[str, float]]  # protocol -> metric


@dataclass(frozen=True)
class Spread:
    """A figure's mean over seeds and the t interval of that mean; no bounds with fewer than two seeds."""

    mean: float
    low: float | None
    high: float | None
    by_seed: dict[int, float]


@dataclass(frozen=True)
class Part:
    """Means over seeds on a segment of the targets."""

    targets: int
    metrics: Figures


@dataclass(frozen=True)
class Standing:
    """What one system reached. metrics: protocol -> metric; parts: partition -> segment."""

    kind: Kind
    metrics: dict[str, dict[str, Spread]]
    parts: dict[str, dict[str, Part]]


@dataclass(frozen=True)
class Test:
    """One of ours against another: per-user values averaged over seeds, p of the paired t-test.

    p_holm: corrected for all tests of this metric in the table.
    """

    difference: float
    gain: float | None
    p: float | None
    p_holm: float | None


@dataclass(frozen=True)
class Cost:
    """What a system took.

    start_seconds: of alignment with its encoding, or of pre-training, for one seed; None where it has neither. seconds:
    of training with the chosen settings, mean over seeds. search_seconds: of all trials together.
    """

    parameters: int | None
    start_seconds: float | None
    seconds: float | None
    search_seconds: float
    request_ms: float | None


@dataclass(frozen=True)
class Chosen:
    """How a system came to its settings, and what they cost. models, reports: folders by seed."""

    choice: dict[str, Any] | None
    trials: list[Trial]
    cost: Cost
    models: dict[int, str]
    reports: dict[int, str]


@dataclass(frozen=True)
class Table:
    """Everything of one data set. tests: ours -> other, of ours those named later -> protocol -> metric.

    floors_chosen: the settings of floors that were chosen on validation.
    """

    targets: int
    users: int
    standings: dict[str, Standing]
    tests: dict[str, dict[str, dict[str, dict[str, Test]]]]
    chosen: dict[str, Chosen]
    floors_chosen: dict[str, dict[str, float]]

    def best(self, protocol: str, metric: str, *, among: Iterable[str] | None = None) -> str | None:
        """The best of these systems, or of all; the oracle is no system."""
        reached = {
            name: self.standings[name].metrics[protocol][metric].mean
            for name in (self.standings if among is None else among)
            if self.standings[name].kind != "ceiling" and protocol in self.standings[name].metrics
        }
        return max(reached, key=lambda name: reached[name], default=None)


@dataclass(frozen=True)
class Failure:
    """What failed where; a trial that fails is left behind, anything else is missing from the tables."""

    data: str
    system: str
    what: str
    error: str
    is_trial: bool = False


@dataclass(frozen=True)
class Standings:
    """Everything that ``compare.json`` holds."""

    task: Task
    ours: list[str]
    seeds: list[int]
    metrics: list[str]
    ks: list[int]
    confidence: float
    jobs: int
    data: dict[str, Table]
    failures: list[Failure]

    @property
    def missing(self) -> list[Failure]:
        """What is missing from the tables."""
        return [failure for failure in self.failures if not failure.is_trial]
