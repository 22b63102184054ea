"""From how many tokens on torch's fused attention beats plain products: what `language.fused_or_plain` goes by.

Both ways attend to the same tokens in turns; the quickest of several repeats counts, since others at work only add.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from medvisionllama.language.fused_or_plain import products_are_faster
from medvisionllama.models.attention import attend_by_products

BATCH = 4
# Heads and their width: of the papers' ViT, of MiniLM, and of a wider ViT.
HEADS = ((4, 16), (12, 32), (8, 64))
TOKENS = (64, 125, 216, 343, 512, 729, 1000, 1331)
DTYPES = (torch.float32, torch.bfloat16)
REPEATS = 5

Way = Callable[[Tensor, Tensor, Tensor], Tensor]
WAYS: dict[str, Way] = {"products": attend_by_products, "fused": scaled_dot_product_attention}


def benchmark_attention(tokens: Sequence[int] = TOKENS, repeats: int = REPEATS) -> dict[str, Any]:
    """Time both ways on this machine's CPU, forward alone and with the pass back.

    Returns:
        A JSON-ready object. Of every line milliseconds, ``products_to_fused`` (above 1 the kernel is faster), which
        way is taken, and ``taken_to_best``: how much longer it takes than the better one.
    """
    lines = [
        _line(heads, width, dtype, n_tokens, back=back, repeats=repeats)
        for (heads, width), dtype, back, n_tokens in product(HEADS, DTYPES, (False, True), tokens)
    ]
    return {"batch": BATCH, "threads": torch.get_num_threads(), "repeats": repeats, "lines": lines}


def _line(heads: int, width: int, dtype: torch.dtype, n_tokens: int, *, back: bool, repeats: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    # As they leave a layer's projection: (B,N,H,D) in memory.
    shape = (BATCH, n_tokens, heads, width)
    three = [torch.randn(shape, generator=generator).to(dtype).transpose(1, 2) for _ in range(3)]
    query, key, value = (one.requires_grad_(back) for one in three)
    outer = torch.ones_like(query)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(repeats + 1):
        for name, way in WAYS.items():
            started = perf_counter()
            attended = way(query, key, value)
            if back:
                torch.autograd.grad(attended, (query, key, value), outer)
            seconds[name].append(perf_counter() - started)
    best = {name: min(them[1:]) for name, them in seconds.items()}  # the first round warms up
    taken = "products" if products_are_faster(query) else "fused"
    return {
        "heads": heads,
        "head_width": width,
        "dtype": str(dtype).removeprefix("torch."),
        "back": back,
        "tokens": n_tokens,
        **{f"{name}_ms": 1e3 * time for name, time in best.items()},
        "products_to_fused": best["products"] / best["fused"],
        "taken": taken,
        "taken_to_best": best[taken] / min(best.values()),
    }
