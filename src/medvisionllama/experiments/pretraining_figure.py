"""The study's figure: differences in Dice with the interval that decides, and what lies behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from medvisionllama.experiments.pretraining import PLANNED_TASK, RECIPE
from medvisionllama.experiments.pretraining_contrasts import Contrast
from medvisionllama.reports.drawing import INK_SOFT, run_colour, styled
from medvisionllama.reports.wording import MINUS

_ROW_INCHES = 0.44


@styled
def draw_effects(lines: Sequence[Contrast]) -> Figure:
    """One panel a share of the data, one row a contrast and block, one colour a network.

    The declared contrasts stand above the exploratory ones. A filled diamond was detected, an empty one was not.
    """
    fractions = sorted({line.place.fraction for line in lines})
    ordered = sorted(lines, key=lambda line: not line.declared)
    kinds = list(dict.fromkeys(_kind(line) for line in ordered))
    declared = len({_kind(line) for line in lines if line.declared})
    networks = sorted({line.place.network for line in lines})
    figure = Figure(figsize=(3.6 + 2.7 * len(fractions), 1.5 + _ROW_INCHES * len(kinds)), layout="constrained")
    panels = figure.subplots(1, len(fractions), sharey=True, sharex=True, squeeze=False)[0]
    for axes, fraction in zip(panels, fractions, strict=True):
        axes.axvline(0, color=INK_SOFT, linewidth=1)
        if 0 < declared < len(kinds):
            axes.axhline(0.5 - declared, color=INK_SOFT, linewidth=0.8, linestyle=":")
        axes.set_title(f"{100 * fraction:g}% of the data")
        axes.set_xlabel("difference in Dice, hundredths")
        for line in (line for line in lines if line.place.fraction == fraction):
            which = networks.index(line.place.network)
            offset = 0.17 * (1 - 2 * which / (len(networks) - 1)) if len(networks) > 1 else 0.0
            _draw_line(axes, line, offset - kinds.index(_kind(line)), run_colour(which))
    panels[0].set_yticks([-place for place in range(len(kinds))], kinds)
    panels[0].set_ylim(0.5 - len(kinds), 0.5)
    handles = [Line2D([], [], marker="s", linestyle="", color=run_colour(i)) for i in range(len(networks))]
    figure.legend(handles, networks, loc="outside lower center", ncols=len(networks))
    return figure


def _draw_line(axes: Axes, line: Contrast, at: float, colour: str) -> None:
    effect = line.effect
    if not math.isnan(effect.both.low):
        axes.plot([100 * effect.both.low, 100 * effect.both.high], [at, at], color=colour, lw=5, alpha=0.3)
    if not math.isnan(effect.cases.low):
        axes.plot([100 * effect.cases.low, 100 * effect.cases.high], [at, at], "|-", color=colour, lw=1, ms=5)
    axes.plot([100 * d for d in effect.by_seed], [at] * len(effect.by_seed), ".", color=INK_SOFT, markersize=4)
    face = colour if line.detected else "white"
    axes.plot(100 * effect.difference, at, "D", color=colour, markerfacecolor=face, markersize=4.5)


def _kind(line: Contrast) -> str:
    """Two short lines: what is compared, and around which block."""
    about = [line.place.block] if line.place.block else []
    about += ["LoRA off"] if line.place.lora == "none" else []
    if (line.place.task, line.place.steps) != (PLANNED_TASK, RECIPE.steps):
        about += [line.place.task, f"{line.place.steps:,} steps"]
    about += [line.apart] if line.apart else []
    return f"{line.place.middle} {MINUS} {line.first}\n{', '.join(about)}"
