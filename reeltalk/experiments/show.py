"""A study in words: tables for a terminal and for Markdown, curves as a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from reeltalk.evaluation.plots import ACCENT, OTHERS, Bar, Series, lines
from reeltalk.evaluation.significance import LEVEL, p_told
from reeltalk.experiments.outcome import Cost, Reached, Study
from reeltalk.experiments.runs import ALL

SHOWN = ("recall", "ndcg", "mrr")

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{{ axis }}</title>
<style>
:root { --line: #d9dde3; }
@media (prefers-color-scheme: dark) { :root { --line: #343a43; } }
body { margin: 2rem auto; max-width: 70rem; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 1.4rem; }
svg { width: 100%; height: auto; }
</style></head>
<body><h1>Quality by {{ axis }}</h1><p>Means over {{ seeds }} seeds.</p>
<div class="plots">{% for plot in plots %}{{ plot }}{% endfor %}</div></body></html>
"""


@dataclass(frozen=True)
class Grid:
    """A table as it is shown; the first column names the rows."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def grids(study: Study) -> Iterator[Grid]:
    """The tables of a study: one a task, part of the targets and protocol, then costs, then what failed."""
    first, *others = study.variants
    star = f"; *: Holm-corrected p < {LEVEL} against {first}" if others else ""
    for task, parts in study.parts.items():
        for part, reached in parts.items():
            protocols = dict.fromkeys(protocol for of in reached.values() for protocol in of.mean)
            where = "" if part == ALL else f", {part}"
            for protocol in protocols:
                targets = next(of.targets for of in reached.values() if protocol in of.mean)
                title = f"{task} task, {protocol} ranking{where} ({targets:,} targets{star})"
                yield _metric_grid(study, task, reached, protocol, title)
            if not protocols and part == ALL:
                yield Grid(
                    f"{task} task", ["", "seeds"], [[name, _seeds(study, task, name)] for name in study.variants]
                )
    yield from _cost_grids(study)
    if study.failures:
        rows = [[of.variant, str(of.seed), of.task, " ".join((of.error or "").split())] for of in study.failures]
        yield Grid("failed", ["", "seed", "task", "error"], rows)


def markdown(study: Study) -> str:
    """The tables of a study as Markdown."""
    first = next(iter(study.variants))
    told = (
        f"Means over seeds {', '.join(map(str, study.seeds))}. Gain, p and * are against {first}, over the seeds that "
        "both have. p is of a paired t-test on per-user values averaged over seeds, corrected by Holm's method: the "
        "variants of a table are tested together, each metric by itself. p (Holm) is that of the gain; * marks every "
        f"figure with p < {LEVEL}."
    )
    parts = [told]
    parts += [grid_markdown(grid) for grid in grids(study)]
    overrides = "\n".join(f"* {name}: `{' '.join(of) or 'as the file says'}`" for name, of in study.variants.items())
    return "\n\n".join([*parts, f"## variants\n\n{overrides}"]) + "\n"


def grid_markdown(grid: Grid) -> str:
    """A table under its title as Markdown."""
    table = [grid.columns, ["---", *["---:"] * (len(grid.columns) - 1)], *grid.rows]
    rows = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table)
    return f"## {grid.title}\n\n{rows}"


def headline_of(metrics: Iterable[str]) -> str:
    """NDCG at the cut-off nearest to 10."""
    return min((name for name in metrics if name.startswith("ndcg@")), key=lambda name: abs(int(name[5:]) - 10))


def curves_page(study: Study, *, axis: str, points: Mapping[str, int]) -> str:
    """A page with a curve a task and protocol: the headline NDCG, and recall at the same cut-off, by `points`."""
    plots = []
    names = sorted(points, key=lambda name: points[name])
    for task, parts in study.parts.items():
        reached = parts[ALL]
        for protocol in dict.fromkeys(protocol for of in reached.values() for protocol in of.mean):
            headline = headline_of(next(of.mean[protocol] for of in reached.values() if protocol in of.mean))
            series = [
                Series(
                    metric,
                    "reported" if metric == headline else "other",
                    colour,
                    _bars(reached, names, protocol, metric),
                )
                for metric, colour in ((headline, ACCENT), (headline.replace("ndcg", "recall"), OTHERS[0]))
            ]
            title = f"{task} task, {protocol} ranking"
            plots.append(Markup(lines(title, [points[name] for name in names], series, axis=axis)))
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    return template.render(axis=axis, seeds=len(study.seeds), plots=plots)


def _bars(reached: Mapping[str, Reached], names: Sequence[str], protocol: str, metric: str) -> list[Bar | None]:
    return [Bar(reached[name].mean[protocol][metric]) if name in reached else None for name in names]


def _metric_grid(study: Study, task: str, reached: Mapping[str, Reached], protocol: str, title: str) -> Grid:
    metrics = next(of.mean[protocol] for of in reached.values() if protocol in of.mean)
    shown = [name for name in metrics if name.startswith(SHOWN)]
    headline = headline_of(metrics)
    rows = []
    for variant in study.variants:
        of, figures, gain, p = reached.get(variant), ["" for _ in shown], "", ""
        if of is not None and protocol in of.mean:
            p_values = of.p_holm.get(protocol, {})
            figures = [f"{of.mean[protocol][name]:.4f}{_star(p_values.get(name))}" for name in shown]
            against = of.against_first.get(protocol, {}).get(headline)
            gain = "" if against is None or against.gain is None else f"{against.gain:+.1%}"
            p = "" if (tested := p_values.get(headline)) is None else p_told(tested)
        rows.append([variant, *figures, gain, p, _seeds(study, task, variant)])
    return Grid(title, ["", *shown, f"gain {headline}", "p (Holm)", "seeds"], rows)


def _star(p: float | None) -> str:
    return "*" if p is not None and p < LEVEL else ""


def _seeds(study: Study, task: str, variant: str) -> str:
    """How many seeds there are, and how many failed."""
    cells = [cell for cell in study.cells if (cell.task, cell.variant) == (task, variant)]
    if not cells:
        return "not run"
    failed = sum(cell.error is not None for cell in cells)
    return f"{len(cells) - failed}, {failed} failed" if failed else str(len(cells))


def _cost_grids(study: Study) -> Iterator[Grid]:
    """A table a kind of cost, with the steps that tell of it as columns."""
    steps = list(dict.fromkeys(step for of in study.costs.values() for step in of))
    for title, shown in _COSTS.items():
        rows = [[name, *(shown(of[step]) if step in of else "" for step in steps)] for name, of in study.costs.items()]
        filled = [place for place in range(1, len(steps) + 1) if any(row[place] for row in rows)]
        if filled:
            columns = ["", *(steps[place - 1] for place in filled)]
            yield Grid(title, columns, [[row[0], *(row[place] for place in filled)] for row in rows])


_COSTS: Mapping[str, Callable[[Cost], str]] = {
    "seconds": lambda cost: "" if cost.seconds is None else f"{cost.seconds:,.1f}",
    "tokens read": lambda cost: "" if cost.tokens is None else f"{cost.tokens:,.0f}",
    "peak memory, MiB": lambda cost: "" if cost.peak_bytes is None else f"{cost.peak_bytes / 2**20:,.0f}",
}
