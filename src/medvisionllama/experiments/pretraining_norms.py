"""How much of what the decoder gets is the block: mean norms of the tokens that enter it and that leave it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medvisionllama.experiments.pretraining import told_apart
from medvisionllama.experiments.pretraining_contrasts import Measured
from medvisionllama.experiments.pretraining_wording import data_of, network_of, page_order
from medvisionllama.experiments.rows import Row

READING = """\
Mean length of a token before and behind the block at the last logged step, averaged over seeds. Behind the block the \
tokens that entered are added again: where those are much longer, what goes on is mostly what entered. How long tokens \
leave depends on the block's own norms as well: the ratio compares starts of one block, not blocks with one another."""


def norms_table(measured: Measured) -> str:
    """What passes the block of each place that has one; empty where nothing was logged."""
    apart = told_apart([*measured])
    lines = []
    for place in sorted(measured, key=page_order):
        norms = [found for row in measured[place].values() if (found := _last(row)) is not None]
        if norms:
            entering, leaving = np.mean(norms, axis=0)
            lines.append(
                f"| {network_of(place)} | {data_of(place, apart[place])} | {place.middle} | {entering:.1f} | "
                f"{leaving:.1f} | {leaving / entering:.2f} | {len(norms)} |"
            )
    if not lines:
        return ""
    head = "| network | data | middle | entering | leaving | leaving / entering | seeds |\n" + "|---" * 7 + "|"
    return "\n".join([head, *lines])


def _last(row: Row) -> Sequence[float] | None:
    """Norms entering and leaving, as logged last."""
    logged = [line["block_norms"] for line in row.content["log"] if line.get("block_norms")]
    return (logged[-1]["entering"], logged[-1]["leaving"]) if logged else None
