"""Attention without a direction: every token sees every token, whatever layer asks.

`transformers` layers call the attention function their configuration names. Ours ignores causality and
sliding windows (a mask only enters where one is handed in on purpose), keeps Gemma 2's soft-capping, and
takes the faster of two ways of computing the same thing.
"""

from __future__ import annotations

from itertools import cycle

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from medvisionllama.language.attention_gradient import attend
from medvisionllama.language.families import ATTENTION_NAME
from medvisionllama.language.fused_or_plain import products_are_faster

# Soft-capped scores have no fused kernel: of more tokens than this they are made for so many queries at a time, and
# again in the backward pass, so that memory grows with the tokens and not with their square.
_CAPPED_WHOLE_AT_MOST = 1024
_CAPPED_QUERIES_AT_ONCE = 256


def bidirectional_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    **unused: object,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention over all tokens, in the calling convention of `transformers`.

    Args:
        module: The layer's attention module; its heads are read from the shapes instead.
        query: (B, H, N, D).
        key: (B, G, N, D), where G divides H: each group of H/G query heads shares a key head.
        value: (B, G, N, D).
        attention_mask: Added to the scores, broadcastable to (B, H, N, N); None masks nothing.
        scaling: Factor on the scores.
        dropout: Not applied: the layers here are kept in evaluation mode, where it is 0.
        softcap: `softcap * tanh(scores / softcap)` before the softmax (Gemma 2, section 2 of its report).
        unused: What `transformers` hands to attention functions of other kinds.

    Returns:
        The attended values (B, N, H, D), and None for the weights, which are not kept.
    """
    if softcap is not None:
        capped = _by_products if query.shape[2] <= _CAPPED_WHOLE_AT_MOST else _by_chunks
        return capped(query, key, value, attention_mask, scaling, softcap).transpose(1, 2), None
    if attention_mask is None and _wants_own_gradient(query, key, value):
        return attend(query, key, value, scaling).transpose(1, 2), None
    if not products_are_faster(query):
        repeats = query.shape[1] // key.shape[1]
        # The CPU's kernel shares key heads by itself, which spares copies; on a GPU only some kernels do, and the one
        # that stands in for the others would hold all scores.
        shares = not query.is_cuda
        if repeats > 1 and not shares:
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=shares and repeats > 1
        )
        return attended.transpose(1, 2), None
    return _by_products(query, key, value, attention_mask, scaling, softcap).transpose(1, 2), None


def is_exported() -> bool:
    """Whether a compiler or tracer is reading along, which wants plain operations and no gradient of our own."""
    return bool(torch.compiler.is_compiling() or torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]


def _wants_own_gradient(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the fused kernel's backward pass is the slower one: with bfloat16 on a CPU, and many tokens.

    The kernel is then called by its inner name, which checks nothing; what it takes for granted is asked here.
    """
    three = query, key, value
    return (
        query.device.type == "cpu"
        and all(one.dtype == torch.bfloat16 and one.stride(-1) == 1 for one in three)
        and all(one.shape[2:] == query.shape[2:] for one in three)
        and torch.is_grad_enabled()
        and any(one.requires_grad for one in three)
        and not products_are_faster(query)
        and not is_exported()
    )


def _by_products(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, softcap: float | None
) -> Tensor:
    """The same as two matrix products; query and result are (B, H, Q, D), the rest as above."""
    B, H, Q, D = query.shape
    G, N = key.shape[1:3]
    # Query heads that share a key head are laid end to end: one product, and no copies of keys and values.
    grouped = (query * scaling).reshape(B, G, (H // G) * Q, D)
    scores = grouped @ key.transpose(2, 3)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = (scores.view(B, H, Q, N) + mask).view(B, G, (H // G) * Q, N)
    # The kernel sums in float32 whatever the dtype; asking for float32 outside would only copy the scores.
    return (functional.softmax(scores, dim=-1) @ value).view(B, H, Q, D)


def _by_chunks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, softcap: float | None
) -> Tensor:
    """The same for a few queries at a time, computed again in the backward pass instead of kept."""
    N = query.shape[2]
    masks = [None] if mask is None else torch.split(mask.expand(*mask.shape[:2], N, N), _CAPPED_QUERIES_AT_ONCE, dim=2)
    attended = [
        checkpoint(_by_products, queries, key, value, its_mask, scaling, softcap, use_reentrant=False)
        for queries, its_mask in zip(torch.split(query, _CAPPED_QUERIES_AT_ONCE, dim=2), cycle(masks), strict=False)
    ]
    return torch.cat(attended, dim=2)


def register() -> None:
    """Make the function known to `transformers` under `ATTENTION_NAME`; doing it twice changes nothing."""
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, bidirectional_attention)
