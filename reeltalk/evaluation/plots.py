"""The report's figures as inline SVG that takes its ink from the page, so that one drawing fits light and dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO

import matplotlib as mpl
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT = "#010203", "#040506"  # stand for currentColor and for the page's grid colour until the drawing is embedded
ACCENT = "#e4572e"
OTHERS = ("#3d7ea6", "#8f7ac0", "#4a9d6f", "#c49a2c", "#7d8597", "#c06c96", "#5aa9b5")
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Bar:
    """A mean with its interval; the one in question stands out."""

    name: str
    mean: float
    low: float | None = None
    high: float | None = None
    stands_out: bool = False


def bars(title: str, of: Sequence[Bar]) -> str:
    """Horizontal bars with error bars, the first on top."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 0.7 + 0.34 * len(of)), layout="constrained")
        axes = figure.subplots()
        for place, bar in enumerate(of):
            axes.barh(place, bar.mean, height=0.66, color=ACCENT if bar.stands_out else OTHERS[0], label=bar.name)
            _whisker(axes, place, bar, is_flat=True)
        reach = max([bar.mean if bar.high is None else bar.high for bar in of] + [1e-9])
        for place, bar in enumerate(of):
            end = bar.mean if bar.high is None else bar.high
            axes.text(end + 0.015 * reach, place, f"{bar.mean:.4f}", va="center", fontsize=9)
        axes.set_yticks(range(len(of)), [bar.name for bar in of])
        axes.set_xlim(0, 1.16 * reach)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", linewidth=0.7)
        axes.set_title(title)
        return _svg(figure, title)


def lines(title: str, ks: Sequence[int], of: Sequence[tuple[str, Sequence[float], bool]]) -> str:
    """A metric by K: (system, values, stands out) each."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.subplots()
        for (name, values, stands_out), colour in zip(of, _colours([s for _, _, s in of]), strict=True):
            axes.plot(ks, values, color=colour, label=name, marker="o", ms=4, lw=2.4 if stands_out else 1.4)
        axes.set_xticks(ks)
        axes.set_xlabel("K")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", linewidth=0.7)
        axes.set_title(title)
        figure.legend(loc="outside right upper", fontsize=9)
        return _svg(figure, title)


def grouped_bars(title: str, groups: Sequence[str], of: Sequence[tuple[str, Sequence[Bar | None], bool]]) -> str:
    """Bars side by side in groups: (system, a bar or none a group, stands out) each."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(4.2, 1.6 + 0.95 * len(groups)), 2.9), layout="constrained")
        axes = figure.subplots()
        width = 0.8 / max(1, len(of))
        for place, ((name, found, _), colour) in enumerate(zip(of, _colours([s for _, _, s in of]), strict=True)):
            shift = (place - (len(of) - 1) / 2) * width
            drawn = [(group + shift, bar) for group, bar in enumerate(found) if bar is not None]
            axes.bar([x for x, _ in drawn], [bar.mean for _, bar in drawn], width=width * 0.92, color=colour, label=name)
            for x, bar in drawn:
                _whisker(axes, x, bar, is_flat=False)
        axes.set_xticks(range(len(groups)), list(groups))
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="y", linewidth=0.7)
        axes.set_title(title)
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
        figure = Figure(figsize=(5.6 * len(panels), 3.1), layout="constrained")
        for axes, (title, of) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for name, colour in zip(of, _colours([name == of[0] for name in of]), strict=True):
                known = log.select("step", name).drop_nulls().sort("step")
                axes.plot(known["step"], known[name], color=colour, label=name, lw=1.6, marker="o" if len(known) < 40 else None, ms=3)
            axes.set_xlabel("step")
            axes.set_title(title)
            axes.grid(axis="y", linewidth=0.7)
            if len(of) > 1:
                axes.legend(fontsize=9)
        return _svg(figure, "training")


def _colours(stand_out: Sequence[bool]) -> list[str]:
    """The accent for what stands out, for the others colours of their own."""
    rest = iter(OTHERS * (1 + len(stand_out) // len(OTHERS)))
    return [ACCENT if one else next(rest) for one in stand_out]


def _whisker(axes: Axes, place: float, bar: Bar, *, is_flat: bool) -> None:
    if bar.low is None or bar.high is None:
        return
    reach = [[max(0.0, bar.mean - bar.low)], [max(0.0, bar.high - bar.mean)]]
    style = {"ecolor": INK, "elinewidth": 1.1, "capsize": 2.5, "capthick": 1.1}
    if is_flat:
        axes.errorbar(bar.mean, place, xerr=reach, fmt="none", **style)
    else:
        axes.errorbar(place, bar.mean, yerr=reach, fmt="none", **style)


def _svg(figure: Figure, title: str) -> str:
    """The drawing without prolog, metadata, size and fonts of its own; only ids that are referred to stay, salted by the title."""
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
