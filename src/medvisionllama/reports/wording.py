"""How numbers and code are written on the page."""

from __future__ import annotations

import math

from markupsafe import Markup

from medvisionllama.reports.statistics import Summary

UNKNOWN = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def number(value: float | None, metric: str = "dice") -> str:
    """Three decimals for shares, two for millimetres, a dash for what has no value."""
    if value is None or math.isnan(value):
        return UNKNOWN
    return f"{value:.2f}" if metric.endswith("_mm") else f"{value:.3f}"


def interval(cell: Summary, metric: str) -> str:
    """Both ends; nothing where they are not known."""
    return "" if math.isnan(cell.low) else f"{number(cell.low, metric)} to {number(cell.high, metric)}"


def signed(value: float, metric: str) -> str:
    """A difference with its sign; one that rounds to nothing has none."""
    if math.isnan(value):
        return UNKNOWN
    magnitude = number(abs(value), metric)
    sign = "" if float(magnitude) == 0 else "+" if value > 0 else MINUS
    return sign + magnitude


def millilitres(value: float, scale: float) -> str:
    """A signed volume, as fine as three digits of ``scale``: hippocampi need thousandths, livers none."""
    if math.isnan(value):
        return UNKNOWN
    digits = 2 - math.floor(math.log10(abs(scale))) if scale and math.isfinite(scale) else 3
    said = f"{abs(value):.{min(3, max(0, digits))}f}"
    return said if float(said) == 0 else ("+" if value > 0 else MINUS) + said


def exact(value: float) -> str:
    """Six digits, for tables that machines read; nothing for what has no value."""
    return "" if math.isnan(value) else f"{value:.6g}"


def p_value(value: float) -> str:
    """Three decimals, and no smaller than a thousandth."""
    return UNKNOWN if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def count(value: int | None) -> str:
    """Thousands apart; a dash where it is not known."""
    return UNKNOWN if value is None else f"{value:,}"


def counted(n: int, what: str) -> str:
    """Such as ``1 seed`` and ``2 seeds``."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def duration(seconds: float | None) -> str:
    """Such as ``42 s``, ``4 min 10 s`` or ``3 h 05 min``; a dash where it is not known."""
    if seconds is None:
        return UNKNOWN
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def marked_code(text: str) -> Markup:
    """What stands between backticks as code, everything else as the text it is."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:  # a backtick without its fellow
        return Markup("{}").format(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if place % 2 else piece for place, piece in enumerate(pieces)
    )
