"""A comparison as one HTML page that needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from reeltalk.evaluation.page import PARTITION_TITLES, Cell, Gain, Row, page_template, segment_place, shown_metric
from reeltalk.evaluation.plots import ACCENT, CEILING, OTHERS, Bar, Kind, Series, lines
from reeltalk.evaluation.significance import LEVEL
from reeltalk.experiments.comparison_text import (
    AGAINST,
    failed,
    gain,
    ordered,
    other_grids,
    protocols,
    seeds_told,
    told,
)
from reeltalk.experiments.show import headline_of
from reeltalk.experiments.standings import Spread, Standings, Table

TEMPLATE = "compare.html"
MARKERS = "os^Dv"


@dataclass(frozen=True)
class Section:
    """One data set under one protocol."""

    title: str
    columns: list[str]
    rows: list[Row]
    gains: list[tuple[str, list[Gain | None]]]
    plots: list[Markup]


def page(found: Standings) -> str:
    """The page of a comparison: tables, a line a system by K, history length and segment, then costs and choices."""
    return page_template("reeltalk.experiments", TEMPLATE).render(
        found=found,
        told=f"{told(found)} Gains in colour have a p below {LEVEL}.",
        sections=[
            _section(found, data, protocol) for data, table in found.data.items() for protocol in protocols(table)
        ],
        grids=list(other_grids(found)),
    )


def _section(found: Standings, data: str, protocol: str) -> Section:
    table = found.data[data]
    names = ordered(table, protocol)
    best = {metric: table.best(protocol, metric) for metric in found.metrics}
    rows = [
        Row(
            name,
            _kind(found, table, name),
            [
                *(
                    _cell(table.standings[name].metrics[protocol][metric], best[metric] == name)
                    for metric in found.metrics
                ),
                Cell(seeds_told(found, table, name), "", is_best=False),
            ],
        )
        for name in names
    ]
    for name in failed(table):
        cells = [*("failed" for _ in found.metrics), seeds_told(found, table, name)]
        rows.append(Row(name, "other", [Cell(text, "", is_best=False) for text in cells]))
    gains = [
        (f"{ours} against the best {'of ours named later' if kind == 'ours' else kind}", of_kind)
        for ours in found.ours
        for kind in AGAINST
        if any(of_kind := [gain(table, ours, protocol, metric, kind=kind) for metric in found.metrics])
    ]
    return Section(
        title=f"{data}: {protocol} ranking, {table.targets:,} targets of {table.users:,} users",
        columns=[*found.metrics, "seeds"],
        rows=rows,
        gains=gains,
        plots=[Markup(plot) for plot in _plots(found, data, protocol, names)],
    )


def _cell(of: Spread, is_best: bool) -> Cell:
    interval = "" if of.low is None else f"{of.low:.4f}-{of.high:.4f}"
    return Cell(f"{of.mean:.4f}", interval, is_best)


def _kind(found: Standings, table: Table, name: str) -> Kind:
    if name == found.ours[0]:
        return "reported"
    return "ceiling" if table.standings[name].kind == "ceiling" else "other"


def _plots(found: Standings, data: str, protocol: str, names: Sequence[str]) -> Iterator[str]:
    table, where = found.data[data], f"{data}, {protocol} ranking"
    for metric in ("recall", "ndcg"):
        values = {
            name: [table.standings[name].metrics[protocol][f"{metric}@{k}"].mean for k in found.ks] for name in names
        }
        yield lines(f"{shown_metric(metric)} by K\n{where}", found.ks, _series(found, table, values))
    headline = headline_of(table.standings[names[0]].metrics[protocol])
    parts = table.standings[names[0]].parts
    for partition, title in PARTITION_TITLES.items():
        segments = sorted((name for name, of in parts[partition].items() if of.targets), key=segment_place)
        by_segment = {
            name: [table.standings[name].parts[partition][segment].metrics[protocol][headline] for segment in segments]
            for name in names
        }
        told = f"{shown_metric(headline)} by {title.lower()}\n{where}"
        yield lines(told, segments, _series(found, table, by_segment), axis=title.lower())


def _series(found: Standings, table: Table, values: dict[str, list[float]]) -> list[Series]:
    """A line a system; its colour and marker are the same in every drawing of a data set."""
    others = [name for name in table.standings if _kind(found, table, name) == "other"]
    drawn = []
    for name, of in values.items():
        kind = _kind(found, table, name)
        place = others.index(name) if kind == "other" else 0
        colour = {"reported": ACCENT, "ceiling": CEILING}.get(kind) or OTHERS[place % len(OTHERS)]
        marker = MARKERS[place // len(OTHERS) % len(MARKERS)]
        drawn.append(Series(name, kind, colour, [Bar(value) for value in of], marker))
    return drawn
