"""How sure a mean is, and whether two systems differ.

A figure is the mean over targets. Targets of one user are not independent, so users are what is drawn: the bootstrap
draws users with all their targets, and the t-test sums each user's differences first (cluster-robust). With one target
a user they are the plain bootstrap and the plain paired t-test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats

from reeltalk.artifacts import read_manifest, reading_file
from reeltalk.errors import DataError, all_problems
from reeltalk.evaluation.metrics import Values

PROTOCOLS = ("sampled", "full")
PER_USER = "per_user.parquet"
RANK_COLUMNS = ("rank", "candidates")  # of per-user values, after their protocol and a dot: no metrics
DRAWS_AT_ONCE = 1 << 22  # users drawn by one call, over all samples
KEYS = ("user_id", "target")
LEVEL = 0.05  # a p-value below it counts
FEWEST = 10  # users of equal weight that bounds and tests need

Users = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Comparison:
    """System a against system b on the same targets; p-values are two-sided.

    `low` and `high` bound the difference; `gain` is difference / mean_b, None where mean_b is 0. p-values are of single
    tests; `holm` corrects several. Bounds and p-values are None where `too_few`.
    """

    mean_a: float
    mean_b: float
    difference: float
    low: float | None
    high: float | None
    gain: float | None
    p_ttest: float | None
    p_bootstrap: float | None


def bootstrap_means(values_TM: Values, users: Users, *, samples: int, seed: int) -> Values:
    """Means over targets in `samples` draws of as many users as there are, with replacement; [samples, M].

    `users` [T] says whose target a row is. Columns share the draws, so differences of columns are paired. No draws
    where there are `too_few` users.
    """
    samples = 0 if too_few(users) else samples
    sums_UM, counts_U = _by_user(values_TM, users)
    num_users = len(counts_U)
    rng = np.random.default_rng([seed, 1])
    size = max(1, DRAWS_AT_ONCE // num_users)
    means = []
    for start in range(0, samples, size):
        rows = min(size, samples - start)
        drawn = rng.integers(0, num_users, (rows, num_users)) + num_users * np.arange(rows)[:, None]
        times_drawn_SU = np.bincount(drawn.reshape(-1), minlength=rows * num_users).reshape(rows, num_users)
        weights_SU = times_drawn_SU.astype(np.float64)
        means.append((weights_SU @ sums_UM) / (weights_SU @ counts_U)[:, None])
    return np.concatenate(means) if means else np.zeros((0, values_TM.shape[1]))


def percentile_bounds(draws_SM: Values, *, confidence: float) -> list[tuple[float, float] | tuple[None, None]]:
    """The middle `confidence` of each column's draws; (None, None) where there are no draws."""
    if len(draws_SM) == 0:
        return [(None, None)] * draws_SM.shape[1]
    tail = (1 - confidence) / 2
    low_M, high_M = np.quantile(draws_SM, [tail, 1 - tail], axis=0)
    return list(zip(low_M.tolist(), high_M.tolist(), strict=True))


def too_few(users: Users) -> bool:
    """Whether the targets are of so few users, or so many of them of one, that neither bounds nor tests hold.

    As many as (sum of n)^2 / sum of n^2 users with equally many targets would weigh the same, n being the targets of
    each; with fewer than `FEWEST` a difference of 0 is found significant far more often than it should.
    """
    _, counts_U = np.unique(users, return_counts=True)
    return bool(counts_U.sum() ** 2 < FEWEST * np.square(counts_U).sum())


def paired_ttest(differences: Values, users: Users) -> float | None:
    """The p-value of a mean difference of 0 over targets, users being the independent units; None where `too_few`."""
    if too_few(users):
        return None
    sums_U1, counts_U = _by_user(differences[:, None], users)
    num_users, mean = len(counts_U), float(differences.mean())
    residuals_U = sums_U1[:, 0] - mean * counts_U
    error = float(np.sqrt(num_users / (num_users - 1) * np.square(residuals_U).sum()) / counts_U.sum())
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / error, num_users - 1))


def comparisons(
    a_TM: Values, b_TM: Values, users: Users, *, draws: tuple[Values, Values], confidence: float
) -> list[Comparison]:
    """Each column of a against the same column of b; `draws` are their `bootstrap_means`, of the same seed."""
    draws_SM = draws[0] - draws[1]
    bounds = percentile_bounds(draws_SM, confidence=confidence)
    found = []
    for column, (low, high) in enumerate(bounds):
        a, b = a_TM[:, column], b_TM[:, column]
        mean_a, mean_b, drawn = float(a.mean()), float(b.mean()), draws_SM[:, column]
        one_sided = (1 + min((drawn <= 0).sum(), (drawn >= 0).sum())) / (1 + len(drawn))
        found.append(
            Comparison(
                mean_a=mean_a,
                mean_b=mean_b,
                difference=mean_a - mean_b,
                low=low,
                high=high,
                gain=(mean_a - mean_b) / mean_b if mean_b else None,
                p_ttest=paired_ttest(a - b, users),
                p_bootstrap=min(1.0, 2 * float(one_sided)) if len(drawn) else None,
            )
        )
    return found


def p_told(p: float) -> str:
    """A t-test's p-value in two digits; none is 0, though it may be too small for a float."""
    return f"{p:.2g}" if p else "<1e-300"


def is_gain(difference: float, p: float | None) -> bool:
    """Whether a difference is above 0 and a test bears it out; `p` is None where there is no test."""
    return difference > 0 and p is not None and p < LEVEL


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values of several tests, corrected so that where nothing differs any is below alpha at most alpha of the time.

    Holm's method: the smallest of m is multiplied by m, the next by m - 1, and so on; none becomes smaller than the one
    before it, nor larger than 1. None is no test: it stays, and does not count.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    corrected: list[float | None] = [None] * len(p_values)
    tested = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    largest = 0.0
    for rank, (p, place) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[place] = largest
    return corrected


def compare(
    run_a: Path | pl.DataFrame,
    run_b: Path | pl.DataFrame,
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, Comparison]]:
    """Two runs on the same targets, by protocol and metric: `compare(a, b)["sampled"]["recall@10"].p_ttest`.

    A run is a report folder or its per-user values. Raises DataError where the runs do not hold the same targets with
    as many candidates each, or share no metric.
    """
    (a, of_a), (b, of_b) = _opened(run_a), _opened(run_b)
    names = [name for name in metric_columns(a) if name in metric_columns(b)]
    problems = [f"one is of dataset {of_a}, the other of dataset {of_b}"] if of_a and of_b and of_a != of_b else []
    all_problems(
        DataError, f"{_name(run_a)} and {_name(run_b)} cannot be compared:", problems or _mismatches(a, b, names)
    )
    users = a["user_id"].to_numpy()
    a_TM, b_TM = a.select(names).to_numpy(), b.select(names).to_numpy()
    draws = bootstrap_means(np.hstack([a_TM, b_TM]), users, samples=samples, seed=seed)
    pair = draws[:, : len(names)], draws[:, len(names) :]
    found: dict[str, dict[str, Comparison]] = {}
    for name, result in zip(names, comparisons(a_TM, b_TM, users, draws=pair, confidence=confidence), strict=True):
        protocol, metric = name.split(".", 1)
        found.setdefault(protocol, {})[metric] = result
    return found


def metric_columns(per_user: pl.DataFrame) -> list[str]:
    """The columns of per-user values that are metrics, such as sampled.recall@10."""
    named = [name for name in per_user.columns if name.split(".")[0] in PROTOCOLS]
    return [name for name in named if name.split(".")[1] not in RANK_COLUMNS]


def _mismatches(a: pl.DataFrame, b: pl.DataFrame, names: Sequence[str]) -> list[str]:
    problems = []
    keys_a, keys_b = a.select(KEYS), b.select(KEYS)
    for here, there, which in ((keys_a, keys_b, "first"), (keys_b, keys_a, "second")):
        if here.is_duplicated().any():
            twice = here.filter(here.is_duplicated()).row(0)
            problems.append(f"the {which} run holds (user_id, target) {twice} more than once")
        if len(only := here.join(there, on=KEYS, how="anti")):
            problems.append(f"{len(only):,} (user_id, target) are in the {which} run alone, such as {only.row(0)}")
    if not problems:
        problems += [
            f"{column} differs, at (user_id, target) {keys_a.filter(a[column] != b[column]).row(0)} it is "
            f"{a.filter(a[column] != b[column])[column][0]} and {b.filter(a[column] != b[column])[column][0]}: "
            "evaluate both with the same dataset and settings"
            for column in (f"{protocol}.candidates" for protocol in PROTOCOLS)
            if column in a.columns and column in b.columns and (a[column] != b[column]).any()
        ]
    if not names:
        problems.append(f"they share no metric: {metric_columns(a)} and {metric_columns(b)}")
    return problems


def _opened(run: Path | pl.DataFrame) -> tuple[pl.DataFrame, str | None]:
    """Per-user values in the order of their keys, and the digest of the dataset where it is known."""
    if isinstance(run, pl.DataFrame):
        return run.sort(KEYS), None
    parents = read_manifest(run, "report").parents
    with reading_file(run / PER_USER):
        return pl.read_parquet(run / PER_USER).sort(KEYS), parents.get("dataset")


def _name(run: Path | pl.DataFrame) -> str:
    return "a frame" if isinstance(run, pl.DataFrame) else str(run)


def _by_user(values_TM: Values, users: Users) -> tuple[Values, Values]:
    """Sums over each user's targets [U, M], and how many there are [U]."""
    _, place = np.unique(users, return_inverse=True)
    order = np.argsort(place, kind="stable")
    counts = np.bincount(place)
    starts = np.cumsum(counts) - counts
    return np.add.reduceat(values_TM[order], starts, axis=0), counts.astype(np.float64)
