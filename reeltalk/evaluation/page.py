"""report.json as one HTML page that needs nothing beside itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import polars as pl
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from reeltalk.evaluation.floors import ORACLE
from reeltalk.evaluation.plots import (
    ACCENT,
    CEILING,
    OTHERS,
    Bar,
    Kind,
    Series,
    bars,
    grouped_bars,
    lines,
    training_curves,
)
from reeltalk.evaluation.significance import is_gain

TEMPLATE, STYLE = "report.html", "page.css"
PROTOCOL_TITLES = {"sampled": "Saved candidates", "full": "Full ranking"}
PARTITION_TITLES = {"users": "Users", "items": "Items", "history": "History length"}
METRICS = ("recall", "ndcg", "hit", "mrr", "coverage")
SEGMENTS = ("cold-start", "unseen", "long-tail", "others")

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A figure of the table."""

    text: str
    interval: str
    is_best: bool


@dataclass(frozen=True)
class Row:
    """A system's line in the table."""

    system: str
    kind: Kind
    cells: list[Cell]


@dataclass(frozen=True)
class Gain:
    """What a system gains over the best other one in a metric; `is_up`: a test bears it out."""

    text: str
    over: str
    p_value: str
    is_up: bool


@dataclass(frozen=True)
class Section:
    """One protocol: its table and its plots."""

    title: str
    candidates: str
    columns: list[str]
    rows: list[Row]
    gains: list[Gain | None]
    plots: list[Markup]


def render(document: Document, *, training_log: pl.DataFrame | None = None) -> str:
    """The page of a report's document (`Report.document`, or report.json read back)."""
    curve = None if training_log is None else training_curves(training_log)
    return page_template(__package__, TEMPLATE).render(
        report=document,
        sections=[_section(document, protocol) for protocol in PROTOCOL_TITLES if protocol in document["metrics"]],
        segments=list(_segment_tables(document)),
        curve=None if curve is None else Markup(curve),
        folds=[
            (title, json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True, default=str))
            for title, content in (
                ("Settings of the evaluation", document["protocol"]["settings"]),
                ("Config of the model", (document["model"] or {}).get("config")),
                ("Dataset", document["dataset"]),
                ("Versions", document["versions"]),
                ("Seeds", document["seeds"]),
            )
            if content
        ],
    )


def page_template(package: str, name: str) -> Template:
    """A page's template, from a file of the package; all pages share one style."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["day"] = lambda text: text.replace("T", " ").replace("+00:00", " UTC")
    environment.globals["style"] = Markup(resources.files(__package__).joinpath(STYLE).read_text(encoding="utf-8"))
    return environment.from_string(resources.files(package).joinpath(name).read_text(encoding="utf-8"))


def headline_metric(document: Document, protocol: str) -> str:
    """The metric that systems are ordered by: NDCG at the cut-off nearest to 10."""
    ks = document["protocol"]["settings"]["ks"]
    return f"ndcg@{min(ks, key=lambda k: abs(k - 10))}"


def best_other(document: Document, protocol: str, metric: str) -> str | None:
    """The best of the systems that the reported one was compared with, the oracle aside."""
    reached = {
        other: float(document["systems"][other]["metrics"][protocol][metric]["mean"])
        for other, found in sorted(document["comparisons"].items())
        if other != ORACLE and metric in found.get(protocol, {})
    }
    return max(reached, key=lambda other: reached[other], default=None)


def _section(document: Document, protocol: str) -> Section:
    systems = {
        name: found["metrics"][protocol] for name, found in document["systems"].items() if protocol in found["metrics"]
    }
    headline = headline_metric(document, protocol)
    order = sorted(systems, key=lambda name: (-systems[name][headline]["mean"], name))
    columns = _columns(document, systems)
    best = {
        column: max((found[column]["mean"] for name, found in systems.items() if name != ORACLE), default=None)
        for column in columns
    }
    rows = [
        Row(name, _kind(document, name), [_cell(systems[name][column], best[column]) for column in columns])
        for name in order
    ]
    found = document["protocol"]["candidates"][protocol]
    return Section(
        title=PROTOCOL_TITLES[protocol],
        candidates=f"{found['are']}; {found['mean']:,.0f} candidates a target on average",
        columns=columns,
        rows=rows,
        gains=[_gain(document, protocol, column) for column in columns],
        plots=[Markup(plot) for plot in _plots(document, protocol, systems, order)],
    )


def _columns(document: Document, systems: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Metrics of the table; hit is left out where one positive makes it equal recall."""
    names = sorted(systems[document["system"]], key=_metric_place)
    is_same = all(
        found[name]["mean"] == found[name.replace("hit", "recall")]["mean"]
        for found in systems.values()
        for name in names
        if name.startswith("hit@")
    )
    return [name for name in names if not (is_same and name.startswith("hit@"))]


def _metric_place(name: str) -> tuple[bool, bool, int, int]:
    """What is cut off at K stands by K, mrr after it, coverage last; files do not keep an order."""
    metric, _, k = name.partition("@")
    return metric == "coverage", not k, int(k or 0), METRICS.index(metric)


def segment_place(name: str) -> int:
    """Named segments as they are listed, bins by where they begin."""
    return SEGMENTS.index(name) if name in SEGMENTS else int(name.rstrip("+").split("-")[0])


def _cell(found: Mapping[str, Any], best: float | None) -> Cell:
    has_interval = found["low"] is not None
    interval = f"{found['low']:.4f}-{found['high']:.4f}" if has_interval else ""
    return Cell(f"{found['mean']:.4f}", interval, found["mean"] == best)


def _kind(document: Document, system: str) -> Kind:
    if system == document["system"]:
        return "reported"
    return "ceiling" if system == ORACLE else "other"


def _series(document: Document, system: str, of: list[Bar | None]) -> Series:
    """A system's figures in its colour, which is the same in every plot."""
    kind = _kind(document, system)
    others = sorted(name for name in document["systems"] if _kind(document, name) == "other")
    own = {"reported": ACCENT, "ceiling": CEILING}
    return Series(system, kind, own.get(kind) or OTHERS[others.index(system) % len(OTHERS)], of)


def _gain(document: Document, protocol: str, metric: str) -> Gain | None:
    other = best_other(document, protocol, metric)
    if other is None:
        return None
    found = document["comparisons"][other][protocol][metric]
    text = f"{found['difference']:+.4f}" if found["gain"] is None else f"{found['gain']:+.1%}"
    p = found["p_ttest"]
    return Gain(text, other, _p_value(p), is_gain(found["difference"], p))


def _p_value(p: float | None) -> str:
    if p is None:
        return "p unknown"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _plots(document: Document, protocol: str, systems: Mapping[str, Any], order: list[str]) -> Iterator[str]:
    title, ks = PROTOCOL_TITLES[protocol], document["protocol"]["settings"]["ks"]
    headline = headline_metric(document, protocol)

    def series(metrics: list[str]) -> list[Series]:
        return [_series(document, name, [Bar(**systems[name][m]) for m in metrics]) for name in order]

    yield bars(f"{shown_metric(headline)}, {title.lower()}", series([headline]))
    if len(ks) > 1:
        for metric in ("recall", "ndcg"):
            yield lines(f"{shown_metric(metric)} by K, {title.lower()}", ks, series([f"{metric}@{k}" for k in ks]))


@dataclass(frozen=True)
class SegmentTable:
    """One way of parting the targets."""

    title: str
    metric: str
    systems: list[str]
    rows: list[tuple[str, int, int, list[str]]]  # segment, targets, users, a figure a system
    plot: Markup


def _segment_tables(document: Document) -> Iterator[SegmentTable]:
    """The reported system beside the best other one, under the last protocol (full ranking where there is one)."""
    protocol = next(name for name in reversed(PROTOCOL_TITLES) if name in document["metrics"])
    metric = headline_metric(document, protocol)
    other = best_other(document, protocol, metric)
    systems = [document["system"], *([other] if other else [])]
    for partition, title in PARTITION_TITLES.items():
        segments = dict(sorted(document["segments"][partition].items(), key=lambda found: segment_place(found[0])))
        figures = {
            name: {
                segment: document["systems"][name]["segments"][partition][segment]["metrics"]
                .get(protocol, {})
                .get(metric)
                for segment in segments
            }
            for name in systems
        }
        rows = [
            (segment, of["targets"], of["users"], [_told(figures[name][segment]) for name in systems])
            for segment, of in segments.items()
        ]
        filled = [segment for segment, of in segments.items() if of["targets"]]
        series = [_series(document, name, [_bar(figures[name][s]) for s in filled]) for name in systems]
        plot = grouped_bars(f"{shown_metric(metric)} by {partition}", filled, series)
        yield SegmentTable(
            title, f"{shown_metric(metric)}, {PROTOCOL_TITLES[protocol].lower()}", systems, rows, Markup(plot)
        )


def _bar(found: Mapping[str, Any] | None) -> Bar | None:
    return None if found is None else Bar(**found)


def _told(found: Mapping[str, Any] | None) -> str:
    return "" if found is None else f"{found['mean']:.4f}"


def shown_metric(metric: str) -> str:
    """recall@10 as people write it."""
    name, at, k = metric.partition("@")
    return {"ndcg": "NDCG", "mrr": "MRR"}.get(name, name.capitalize()) + at + k
