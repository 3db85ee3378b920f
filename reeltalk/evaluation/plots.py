"""The report's figures as inline SVG that takes its ink from the page, so that one drawing fits light and dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.figure import Figure

INK, FAINT = "#010203", "#040506"  # stand for currentColor and for the page's grid colour until the drawing is embedded
ACCENT = "#e4572e"
CEILING = "#8b929c"
OTHERS = ("#3d7ea6", "#8f7ac0", "#4a9d6f", "#c49a2c", "#c06c96", "#5aa9b5", "#7a6a58")
THIRD, HALF = 3.8, 5.6  # inches: what one of three, and one of two, drawings side by side gets of the page
MARKED_POINTS = 40  # a line of fewer points shows them
WHISKER: dict[str, Any] = {"ecolor": INK, "elinewidth": 1.1, "capsize": 2.5, "capthick": 1.1}
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",
    "legend.frameon": False,
}


Kind = Literal["reported", "ceiling", "other"]  # the system in question, what no system can reach, the rest


@dataclass(frozen=True)
class Bar:
    """A mean with its interval."""

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def end(self) -> float:
        return self.mean if self.high is None else self.high


@dataclass(frozen=True)
class Series:
    """A system's figures, one a group or a K; None where it has none."""

    name: str
    kind: Kind
    colour: str
    bars: Sequence[Bar | None]
    marker: str = "o"  # on a line; tells systems of one colour apart


def bars(title: str, of: Sequence[Series]) -> str:
    """A horizontal bar a system, with its interval and its figure, the first on top."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(THIRD, 0.75 + 0.3 * len(of)), layout="constrained")
        axes = figure.subplots()
        drawn = [(series, bar) for series in of for bar in series.bars if bar is not None]
        reach = max([bar.end for _, bar in drawn] + [1e-9])
        for place, (series, bar) in enumerate(drawn):
            axes.barh(place, bar.mean, height=0.64, color=series.colour)
            axes.errorbar(bar.mean, place, xerr=_reach(bar), fmt="none", **WHISKER)
            axes.text(bar.end + 0.03 * reach, place, f"{bar.mean:.4f}", va="center", fontsize=9)
        axes.set_yticks(range(len(drawn)), [series.name for series, _ in drawn])
        axes.set_xlim(0, 1.27 * reach)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", linewidth=0.7)
        axes.locator_params(axis="x", nbins=5)
        axes.set_title(title)
        return _svg(figure, title)


def lines(title: str, xs: Sequence[int] | Sequence[str], of: Sequence[Series], *, axis: str = "K") -> str:
    """A metric by K, or by what `axis` says, a line a system; places that are named stand side by side."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(THIRD, 2.6 + 0.2 * -(-len(of) // 2)), layout="constrained")  # two names a line below
        axes = figure.subplots()
        places = [x if isinstance(x, int) else place for place, x in enumerate(xs)]
        for series in of:
            values = [np.nan if bar is None else bar.mean for bar in series.bars]
            dashes = "--" if series.kind == "ceiling" else "-"
            width = 2.4 if series.kind == "reported" else 1.4
            look: dict[str, Any] = {"marker": series.marker, "ms": 3.5, "lw": width, "ls": dashes}
            axes.plot(places, values, color=series.colour, label=series.name, **look)
        axes.set_xticks(places, [str(x) for x in xs])
        axes.set_xlabel(axis)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", linewidth=0.7)
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
        return _svg(figure, title)


def grouped_bars(title: str, groups: Sequence[str], of: Sequence[Series]) -> str:
    """Bars of the systems side by side, a group each."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(HALF, 2.6), layout="constrained")
        axes = figure.subplots()
        width = 0.8 / max(1, len(of))
        for place, series in enumerate(of):
            shift = (place - (len(of) - 1) / 2) * width
            drawn = [(group + shift, bar) for group, bar in enumerate(series.bars) if bar is not None]
            heights = [bar.mean for _, bar in drawn]
            axes.bar([x for x, _ in drawn], heights, width=width * 0.92, color=series.colour, label=series.name)
            for x, bar in drawn:
                axes.errorbar(x, bar.mean, yerr=_reach(bar), fmt="none", **WHISKER)
        axes.set_xticks(range(len(groups)), list(groups))
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.6, len(groups) - 0.4)
        axes.grid(axis="y", linewidth=0.7)
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=3, fontsize=8.5)
        return _svg(figure, title)


def training_curves(log: pl.DataFrame) -> str | None:
    """Losses, and validation metrics beside them, by step; None where the log has neither."""
    names = [name for name in log.columns if name not in ("step", "epoch", "seconds") and log[name].dtype.is_numeric()]
    losses = [name for name in names if "loss" in name]
    metrics = [name for name in names if name not in losses]
    panels = [(title, of) for title, of in (("training loss", losses), ("validation", metrics)) if of]
    if "step" not in log.columns or not panels:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(HALF * len(panels), 2.9), layout="constrained")
        for axes, (title, of) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for name, colour in zip(of, (ACCENT, *OTHERS * len(of)), strict=False):
                known = log.select("step", name).drop_nulls().sort("step")
                marker = "o" if len(known) < MARKED_POINTS else None
                axes.plot(known["step"], known[name], color=colour, label=name, lw=1.6, marker=marker, ms=3)
            axes.set_xlabel("step")
            axes.set_title(title)
            axes.grid(axis="y", linewidth=0.7)
            if len(of) > 1:
                axes.legend(fontsize=8.5)
        return _svg(figure, "training")


def _reach(bar: Bar) -> list[list[float]] | None:
    """How far the interval goes down and up; also where rounding puts a bound on the wrong side of the mean."""
    if bar.low is None or bar.high is None:
        return None
    return [[max(0.0, bar.mean - bar.low)], [max(0.0, bar.high - bar.mean)]]


def _svg(figure: Figure, title: str) -> str:
    """The drawing without prolog, metadata and fonts of its own; ids stay where referred to, salted by the title."""
    stream = StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(FAINT, "var(--line)")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
