"""From values a target to means, intervals and comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from reeltalk.evaluation.measure import Measured
from reeltalk.evaluation.metrics import Values
from reeltalk.evaluation.report import Interval, Metrics, Segment, SystemResult
from reeltalk.evaluation.segments import Segments
from reeltalk.evaluation.significance import Comparison, Users, bootstrap_means, comparisons, percentile_bounds

Compared = dict[str, dict[str, Comparison]]  # protocol -> metric


@dataclass(frozen=True, eq=False)
class Table:
    """Every metric of every system on every target; all columns share the bootstrap's draws."""

    columns: list[tuple[str, str, str]]  # system, protocol, metric
    values_TM: Values
    users: Users
    draws_SM: Values
    confidence: float

    @classmethod
    def of(
        cls,
        measured: Mapping[str, Mapping[str, Measured]],
        users: Users,
        *,
        members: npt.NDArray[np.bool_] | None = None,
        samples: int,
        confidence: float,
        seed: int,
    ) -> Table:
        """The values of some targets, all by default."""
        chosen = slice(None) if members is None else members
        columns = [(s, p, m) for s, found in measured.items() for p, of in found.items() for m in of.metrics]
        values_TM = np.column_stack([measured[s][p].metrics[m][chosen] for s, p, m in columns])
        draws_SM = bootstrap_means(values_TM, users[chosen], samples=samples, seed=seed)
        return cls(columns, values_TM, users[chosen], draws_SM, confidence)

    def metrics(self) -> dict[str, Metrics]:
        """Means over targets with their intervals, by system."""
        bounds = percentile_bounds(self.draws_SM, confidence=self.confidence)
        found: dict[str, Metrics] = {}
        for (system, protocol, metric), mean, (low, high) in zip(
            self.columns, self.values_TM.mean(0).tolist(), bounds, strict=True
        ):
            found.setdefault(system, {}).setdefault(protocol, {})[metric] = Interval(mean, low, high)
        return found

    def user_means(self) -> dict[str, dict[str, dict[str, float]]]:
        """Means over users of each user's mean, by system and protocol."""
        _, place = np.unique(self.users, return_inverse=True)
        weights_T = 1.0 / np.bincount(place)[place]
        means = (weights_T @ self.values_TM / weights_T.sum()).tolist()
        found: dict[str, dict[str, dict[str, float]]] = {}
        for (system, protocol, metric), mean in zip(self.columns, means, strict=True):
            found.setdefault(system, {}).setdefault(protocol, {})[metric] = mean
        return found

    def compare(self, system: str, other: str) -> Compared:
        """A system against another, under every protocol that both were measured under."""
        places = {column: place for place, column in enumerate(self.columns)}
        pairs = [
            (places[c], places[other, *c[1:]]) for c in self.columns if c[0] == system and (other, *c[1:]) in places
        ]
        a, b = ([pair[side] for pair in pairs] for side in (0, 1))
        results = comparisons(
            self.values_TM[:, a],
            self.values_TM[:, b],
            self.users,
            draws=(self.draws_SM[:, a], self.draws_SM[:, b]),
            confidence=self.confidence,
        )
        found: Compared = {}
        for place, result in zip(a, results, strict=True):
            _, protocol, metric = self.columns[place]
            found.setdefault(protocol, {})[metric] = result
        return found


def system_results(
    measured: Mapping[str, Mapping[str, Measured]],
    table: Table,
    parts: Segments,
    *,
    samples: int,
    seed: int,
) -> dict[str, SystemResult]:
    """Figures and segments of every system."""
    by_segment: dict[str, dict[str, dict[str, Segment]]] = {system: {} for system in measured}
    for partition, segments in parts.members.items():
        for name, members in segments.items():
            found: dict[str, Metrics] = {}
            if members.any():
                found = Table.of(
                    measured, table.users, members=members, samples=samples, confidence=table.confidence, seed=seed
                ).metrics()
            num_users = len(np.unique(table.users[members]))
            for system, of_system in by_segment.items():
                segment = Segment(int(members.sum()), num_users, found.get(system, {}))
                of_system.setdefault(partition, {})[name] = segment
    return {
        system: SystemResult(
            {
                protocol: of | {name: Interval(value) for name, value in measured[system][protocol].coverage.items()}
                for protocol, of in metrics.items()
            },
            by_segment[system],
        )
        for system, metrics in table.metrics().items()
    }


def per_user_values(
    measured: Mapping[str, Measured], targets: pl.DataFrame, parts: Segments, user_keys: pl.DataFrame
) -> pl.DataFrame:
    """One row a (user, target), as `reeltalk.evaluation.report` describes; `measured` is one system's, by protocol."""
    frame = targets.select("user_id", "target", "time", "split")
    keys = frame.select("user_id").join(user_keys, on="user_id", how="left", maintain_order="left")["user_key"]
    columns = [keys]
    for protocol, found in measured.items():
        columns += [
            pl.Series(f"{protocol}.rank", found.rank.astype(np.int32)),
            pl.Series(f"{protocol}.candidates", found.candidates.astype(np.int32)),
            *(pl.Series(f"{protocol}.{metric}", values) for metric, values in found.metrics.items()),
        ]
    for partition, segments in parts.members.items():
        columns += [pl.Series(f"segments.{partition}.{name}", members) for name, members in segments.items()]
    return frame.with_columns(columns).select("user_id", "user_key", pl.exclude("user_id", "user_key"))
