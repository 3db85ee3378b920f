"""The value that picks the epoch to keep: one metric over the saved validation targets."""

from __future__ import annotations

from reeltalk.data.dataset import Split
from reeltalk.errors import DataError
from reeltalk.evaluation.measure import Catalogue, SavedCandidates
from reeltalk.evaluation.metrics import METRIC
from reeltalk.training.ranking import SystemRanker
from reeltalk.training.system import System


class Validation:
    """The validation targets of a system, ranked as often as asked; raises where there is nothing to rank."""

    def __init__(self, system: System) -> None:
        train, task = system.settings.train, system.settings.task
        match = METRIC.fullmatch(train.monitor)
        assert match is not None
        self.system = system
        k = int(match["k"] or 1)
        targets = system.dataset.candidates(task, Split.VALID)
        if targets.is_empty():
            raise DataError(f"{system.dataset.path} has no validation targets of the {task} task to stop by")
        if train.max_validation_targets and len(targets) > train.max_validation_targets:
            targets = targets.sample(train.max_validation_targets, seed=train.seed).sort("target")
        self._protocol: SavedCandidates | Catalogue = (
            Catalogue(system.dataset, targets, exclude_seen=train.exclude_seen, ks=(k,), seed=train.seed)
            if train.monitor_protocol == "full"
            else SavedCandidates(task, targets, ks=(k,), seed=train.seed)
        )

    def value(self) -> float:
        """The monitored metric with the weights as they are; the system is left in the mode it was in."""
        was_training = self.system.training
        measured = self._protocol.measure(SystemRanker(self.system), lambda targets: None)
        self.system.train(was_training)
        return float(measured.metrics[self.system.settings.train.monitor].mean())
