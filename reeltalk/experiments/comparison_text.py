"""A comparison in words: its tables for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from reeltalk.evaluation.page import Gain
from reeltalk.evaluation.significance import is_gain, p_told
from reeltalk.experiments.flows import shown
from reeltalk.experiments.show import Grid, grid_markdown
from reeltalk.experiments.standings import Chosen, Kind, Spread, Standings, Table

AGAINST: tuple[Kind, ...] = ("baseline", "floor", "ours")  # what ours are held against, each kind for itself


def metric_grids(found: Standings) -> Iterator[Grid]:
    """One table a data set and protocol, and what ours gain."""
    for data, table in found.data.items():
        for protocol in protocols(table):
            yield _metric_grid(found, data, table, protocol)
            yield from _gain_grids(found, data, table, protocol)


def other_grids(found: Standings) -> Iterator[Grid]:
    """What each system cost and what was chosen for it, by data set; then what failed."""
    for data, table in found.data.items():
        yield Grid(
            f"{data}: costs",
            ["", "parameters", "start s", "training s", "search s", "request ms"],
            [[name, *_costs(of)] for name, of in table.chosen.items()],
        )
        yield Grid(
            f"{data}: chosen on validation",
            ["", "trials for epochs", "settings"],
            list(_chosen(table)),
        )
    if found.failures:
        rows = [[of.data, of.system, of.what, " ".join(of.error.split())] for of in found.failures]
        yield Grid("failed", ["", "system", "what", "error"], rows)


def markdown(found: Standings) -> str:
    """The tables of a comparison as Markdown."""
    return (
        "\n\n".join([told(found), *map(grid_markdown, metric_grids(found)), *map(grid_markdown, other_grids(found))])
        + "\n"
    )


def told(found: Standings) -> str:
    """How to read the tables."""
    return (
        f"Means over seeds {', '.join(map(str, found.seeds))} on test, ± half of the {found.confidence:.0%} t interval "
        "of that mean; floors and the oracle have no seed. Settings are chosen on validation, first seed. Gains "
        "are over the best baseline, the best floor and the best of ours named later, in that metric; p is of a paired "
        "t-test on per-user values averaged over the seeds that both have, as the gain is, Holm-corrected over all "
        "tests of the metric. It speaks of other users, the intervals of other seeds. Seconds are as trained, "
        f"{found.jobs} at a time in the last call; "
        "start is alignment or pre-training. A request (the ten best for a user) is timed after all training, one "
        "model after the other."
    )


def protocols(table: Table) -> list[str]:
    """The protocols that some system was measured under."""
    return list(dict.fromkeys(protocol for of in table.standings.values() for protocol in of.metrics))


def ordered(table: Table, protocol: str) -> list[str]:
    """The systems measured under a protocol: ceiling, floors, baselines, ours."""
    kinds = ("ceiling", "floor", "baseline", "ours")
    names = [name for name, of in table.standings.items() if protocol in of.metrics]
    return sorted(names, key=lambda name: kinds.index(table.standings[name].kind))


def figure(of: Spread) -> str:
    """A mean, and half the width of its interval."""
    return f"{of.mean:.4f}" if of.high is None else f"{of.mean:.4f} ± {of.high - of.mean:.4f}"


def gain(table: Table, ours: str, protocol: str, metric: str, *, kind: Kind) -> Gain | None:
    """What one of ours gains over the best of a kind; None where it is not tested."""
    tests = table.tests.get(ours, {})
    other = table.best(protocol, metric, among=[name for name in tests if table.standings[name].kind == kind])
    test = None if other is None else tests[other].get(protocol, {}).get(metric)
    if other is None or test is None:
        return None
    much = f"{test.difference:+.4f}" if test.gain is None else f"{test.gain:+.1%}"
    p = "unknown" if test.p_holm is None else p_told(test.p_holm)
    return Gain(much, other, p, is_gain(test.difference, test.p_holm))


def failed(table: Table) -> list[str]:
    """The systems without any figure."""
    return [name for name in table.chosen if name not in table.standings]


def seeds_told(found: Standings, table: Table, name: str) -> str:
    """How many of a system's runs its figures are means of; nothing for floors and the oracle, which have no seed."""
    return f"{len(table.chosen[name].reports)} of {len(found.seeds)}" if name in table.chosen else ""


def _metric_grid(found: Standings, data: str, table: Table, protocol: str) -> Grid:
    rows = []
    for name in ordered(table, protocol):
        of = table.standings[name].metrics[protocol]
        rows.append([name, *(figure(of[metric]) for metric in found.metrics), seeds_told(found, table, name)])
    rows += [[name, *("failed" for _ in found.metrics), seeds_told(found, table, name)] for name in failed(table)]
    title = f"{data}: {protocol} ranking ({table.targets:,} targets of {table.users:,} users)"
    return Grid(title, ["", *found.metrics, "seeds"], rows)


def _gain_grids(found: Standings, data: str, table: Table, protocol: str) -> Iterator[Grid]:
    rows = [
        [ours, metric, of.text, of.over, of.p_value]
        for ours in found.ours
        for kind in AGAINST
        for metric in found.metrics
        if (of := gain(table, ours, protocol, metric, kind=kind)) is not None
    ]
    if rows:
        yield Grid(f"{data}: {protocol} ranking, gains", ["", "metric", "gain", "over", "p"], rows)


def _costs(of: Chosen) -> list[str]:
    cost = of.cost
    return [
        "" if cost.parameters is None else f"{cost.parameters:,}",
        "" if cost.start_seconds is None else f"{cost.start_seconds:,.1f}",
        "" if cost.seconds is None else f"{cost.seconds:,.1f}",
        f"{cost.search_seconds:,.1f}",
        "" if cost.request_ms is None else f"{cost.request_ms:.2f}",
    ]


def _chosen(table: Table) -> Iterator[list[str]]:
    for floor, choice in table.floors_chosen.items():
        yield [floor, "", shown(choice)]
    for name, of in table.chosen.items():
        yield [name, _trials(of), "" if of.choice is None else shown(of.choice)]


def _trials(of: Chosen) -> str:
    """How many configurations there were, and how many of them each later rung kept."""
    rungs: dict[int | None, int] = {}
    for trial in of.trials:
        rungs[trial.epochs] = rungs.get(trial.epochs, 0) + 1
    return ", ".join(f"{many} in full" if epochs is None else f"{many} for {epochs}" for epochs, many in rungs.items())
