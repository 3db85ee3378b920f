"""What the steps print on stdout: figures and tables that fit a terminal and a pipe alike."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from reeltalk.evaluation.report import Report
    from reeltalk.evaluation.significance import Comparison
    from reeltalk.experiments.show import Grid

PIPE_WIDTH = 200


def print_facts(out: Path, facts: Mapping[str, Any]) -> None:
    """A folder's name, and figures worth a look; of what was counted, only what occurred.

    Where several processes train, each of them is the whole command; the first one tells.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(f"wrote {out}"))
    for name, value in facts.items():
        if isinstance(value, dict):
            value = {key: count for key, count in value.items() if count}
        shown = value if isinstance(value, str) else json.dumps(value, default=str)
        console.print(Text(f"  {name}: {shown}"))


def print_step(name: str, folder: Path, *, was_there: bool) -> None:
    """A step of a chain that is done."""
    Console(highlight=False, soft_wrap=True).print(Text(f"{name}: {folder}{' was there' if was_there else ''}"))


def print_systems(report: Report) -> None:
    """One table a protocol: the reported system in bold, and those measured beside it; the page has all metrics."""
    for protocol, found in report.metrics.items():
        measured = [name for name in found if name.startswith(("recall", "ndcg", "mrr"))]
        table = _table(f"{protocol} ranking", "", *measured)
        for system, result in report.systems.items():
            means = [f"{reached[name].mean:.4f}" for name in measured if (reached := result.metrics.get(protocol))]
            table.add_row(system, *means, style="bold" if system == report.system else None)
        table_console().print(table)


def print_comparisons(found: Mapping[str, Mapping[str, Comparison]], name_a: str, name_b: str) -> None:
    """One table a protocol: what a gains over b."""
    table_console().print(Text(f"a: {name_a}\nb: {name_b}"))
    for protocol, by_metric in found.items():
        table = _table(f"{protocol} ranking", "", "a", "b", "a - b", "interval", "gain", "p t-test", "p boot.")
        for metric, of in by_metric.items():
            bounds = "" if of.low is None or of.high is None else f"{of.low:+.4f} {of.high:+.4f}"
            gain = "" if of.gain is None else f"{of.gain:+.1%}"
            tests = ["" if p is None else f"{p:.2g}" for p in (of.p_ttest, of.p_bootstrap)]
            table.add_row(metric, f"{of.mean_a:.4f}", f"{of.mean_b:.4f}", f"{of.difference:+.4f}", bounds, gain, *tests)
        table_console().print(table)


def print_grids(grids: Iterable[Grid]) -> None:
    """The tables of a study."""
    for grid in grids:
        table = _table(grid.title, *grid.columns)
        for row in grid.rows:
            table.add_row(*(Text(cell) for cell in row))
        table_console().print(table)


def table_console() -> Console:
    """A pipe or file has no width; a table must not be cut for it."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def _table(title: str, *columns: str) -> Table:
    first, *numbers = columns
    headers = [Column(first, no_wrap=True), *(Column(name, justify="right", no_wrap=True) for name in numbers)]
    return Table(*headers, title=title, title_justify="left", box=None)
