"""Long tensors, a piece at a time: on a CPU a piece that stays in a processor's cache."""

from __future__ import annotations

from torch import Tensor

# How many numbers a CPU takes at a time: 256 kB in float32.
_NUMBERS_AT_ONCE = 1 << 16


def slices(length: int, step: int) -> list[slice]:
    """Cut 0 … length into slices of `step`, the last of which may reach beyond the end."""
    return [slice(start, start + step) for start in range(0, length, step)]


def rows_at_once(rows: Tensor) -> int:
    """How many entries of the first axis to take at a time: few on a CPU, all of them elsewhere; at least 1."""
    its_numbers = max(1, rows.shape[1:].numel())
    return max(1, _NUMBERS_AT_ONCE // its_numbers if rows.device.type == "cpu" else len(rows))
