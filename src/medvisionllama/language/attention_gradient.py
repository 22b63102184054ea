"""Attention on a CPU whose backward pass is little else than matrix products.

torch's fused kernel is quick forward, but its backward pass takes twice the time of the products in it. Here that
pass goes through the scores in blocks of keys by queries, transposed, so that two of the three products that sum
over queries or keys read their operands as they lie. Nothing runs along the rows of a block: a row's normaliser
and the mean of its gradient are written into additional columns of the operands, which makes their subtraction
part of the products that are needed in any case:

    [K | 1 1 | hi lo] [Q' | hi lo | 1 1]^T  =  K Q'^T + sums of both pairs   and then exp     (probabilities)
    [V | 1 1]         [dO | hi lo]^T        =  V dO^T - delta                and then times   (gradient of the scores)

(The gradient itself is that of Dao et al., FlashAttention, NeurIPS 2022, appendix B.2.)

A score is rounded to the number format before it is exponentiated, and its error grows with its size. So the
probability of key j for query i is computed as 2^f_j 2^-e_i exp(x_ij), with powers of two that bring the scores with
the most weight near 0: f_j follows the weight that the mean query gives to key j, for a key that every query looks at
(an "attention sink") may hold thousands of times another's, and e_i how far query i is from that. The powers go
into V and dO, where they cost no accuracy.

Products over some of the queries add themselves to those before them, which rounds their sum to the number format; sums
over heads, and over keys where these take several blocks, are kept in float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from medvisionllama.language.autocast import without_autocast
from medvisionllama.language.pieces import slices

# How many keys to take at a time. Products read their operands fastest in high and narrow blocks of scores, and where
# a block has all keys, the gradient of its queries is one product.
_KEYS_AT_ONCE = 4096
# How many scores to take at a time: 4 MB in bfloat16. Fewer queries at a time make for more sums, each rounded.
_SCORES_AT_ONCE = 1 << 21
# Powers of two beyond this would leave the range of numbers when they meet large gradients.
_EXPONENT_AT_MOST = 32
# How many rows of all heads to take at a time where they are summed: a cacheful.
_ROWS_AT_ONCE = 1024
# Columns added to the operands: four are used, the others keep the width a multiple of what is multiplied at once.
_COLUMNS_ADDED = 32


def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attend to all tokens without a mask, on a CPU.

    Args:
        query: (B, H, N, D).
        key: (B, G, N, D), where G divides H: each group of H/G query heads shares a key head.
        value: (B, G, N, D).
        scaling: Factor on the scores.

    Returns:
        The attended values (B, H, N, D).
    """
    attended: Tensor = _Attention.apply(query, key, value, scaling)  # type: ignore[no-untyped-call]
    return attended


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        attended, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, scale=scaling
        )
        ctx.save_for_backward(query, key, value, attended, log_sum)
        ctx.scaling = scaling
        result: Tensor = attended
        return result

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, attended, log_sum = ctx.saved_tensors
        # In memory as the projections want them, (B, N, heads, D).
        query_grad, key_grad, value_grad = (
            one.new_empty(one.shape[0], one.shape[2], one.shape[1], one.shape[3]).transpose(1, 2)
            for one in (query, key, value)
        )
        delta = _products_of_rows(outer[0], attended)
        G = key.shape[1]
        repeats = query.shape[1] // G
        scores = _Scores(query, repeats, ctx.scaling)
        for b in range(query.shape[0]):
            for group in range(G):
                heads = slice(group * repeats, (group + 1) * repeats)
                scores.share(key[b, group], value[b, group])
                scores.attend(query[b, heads], outer[0][b, heads], delta[b, heads], log_sum[b, heads])
                query_grad[b, heads] = scores.query_grad.mul_(ctx.scaling)
                key_grad[b, group], value_grad[b, group] = scores.key_grad, scores.value_grad
        return query_grad, key_grad, value_grad, None


class _Scores:
    """Operands, scores and sums of the R heads that share a key head, in memory that all such groups use in turn.

    One thing is new for every block, the gradient of its scores: oneDNN's operation has no place to be told.

    Attributes:
        query_grad: Of the latest heads, (R, N, D) in float32, and still to be multiplied by the factor on the scores.
        key_grad: Of all of these heads, (N, D) in float32.
        value_grad: The same for the values.
    """

    def __init__(self, like: Tensor, R: int, scaling: float) -> None:
        N, D = like.shape[2:]
        self.D, self.scaling = D, scaling
        keys_at_once = max(1, min(N, _KEYS_AT_ONCE))
        queries_at_once = max(1, min(N, _SCORES_AT_ONCE // keys_at_once))
        self.keyed, self.asked = slices(N, keys_at_once), slices(N, queries_at_once)
        self.queries, self.outer = like.new_zeros(2, R, N, D + _COLUMNS_ADDED)
        self.keys, self.values = like.new_zeros(2, N, D + _COLUMNS_ADDED)
        self.keys[:, D : D + 2] = 1
        self.queries[:, :, D + 2 : D + 4] = 1
        self.value = like.new_empty(N, D)
        self.probabilities = like.new_empty(keys_at_once * queries_at_once)
        self.query_part = like.new_empty(queries_at_once, D)
        self.key_part, self.value_part = like.new_empty(2, N, D)
        sum_format = torch.promote_types(like.dtype, torch.float32)
        self.query_grad = like.new_empty(R, N, D, dtype=sum_format)
        self.key_grad, self.value_grad = like.new_empty(2, N, D, dtype=sum_format)

    def share(self, key: Tensor, value: Tensor) -> None:
        """Take the key head (N, D) and value head of the heads to come."""
        self.keys[:, : self.D], self.value = key, value
        self.key_grad.zero_()
        self.value_grad.zero_()

    def attend(self, query: Tensor, outer: Tensor, delta: Tensor, log_sum: Tensor) -> None:
        """Find the gradients of the heads: of what they asked, and where they looked.

        Args:
            query: (R, N, D).
            outer: Gradient of what the heads attended to, (R, N, D).
            delta: What `_products_of_rows` gives of that and of what they attended to, (R, N).
            log_sum: Logarithms of the sums of their exponentiated scores, (R, N).
        """
        self.queries[..., : self.D].copy_(query).mul_(self.scaling)
        key_exponent = self._key_exponents()
        shifts = key_exponent * math.log(2)
        exponent = self._exponents(shifts, log_sum)
        self._split(self.queries, exponent * math.log(2) - log_sum)
        back = torch.exp2(-exponent)
        self.outer[..., : self.D].copy_(outer).mul_(back[..., None].to(outer.dtype))
        self._split(self.outer, -delta * back)
        self.query_grad.zero_()
        for r, key_scale in enumerate(torch.exp2(key_exponent).to(outer.dtype)[..., None]):
            self._split(self.keys[:, 2:], -shifts[r])
            self.values[:, : self.D].copy_(self.value).mul_(key_scale)
            self.values[:, self.D : self.D + 2] = key_scale
            self._attend_alone(self.queries[r], self.outer[r], self.query_grad[r])
            self.key_grad += self.key_part
            self.value_grad += self.value_part.mul_(key_scale)

    def _attend_alone(self, queries: Tensor, outer: Tensor, query_grad: Tensor) -> None:
        """One head's part of the gradients of keys and values, and all of that of its queries (N, D)."""
        D = self.D
        self.key_part.zero_()
        self.value_part.zero_()
        for keyed in self.keyed:
            keys, values = self.keys[keyed], self.values[keyed]
            key_part, value_part = self.key_part[keyed], self.value_part[keyed]
            for asked in self.asked:
                its_queries, its_outer = queries[asked], outer[asked]
                shape = len(keys), len(its_queries)
                probabilities = self.probabilities[: shape[0] * shape[1]].view(shape)
                torch.mm(keys, its_queries.T, out=probabilities).exp_()
                torch.addmm(value_part, probabilities, its_outer[:, :D], out=value_part)
                scores_grad = _times_products(probabilities, values, its_outer)
                torch.addmm(key_part, scores_grad, its_queries[:, :D], out=key_part)
                query_grad[asked] += torch.mm(scores_grad.T, keys[:, :D], out=self.query_part[: shape[1]])

    def _key_exponents(self) -> Tensor:
        """How far the mean query of each head prefers each key to the others, in powers of two, (R, N)."""
        queries, keys = self.queries[..., : self.D], self.keys[:, : self.D]
        preferred = (queries.mean(1) @ keys.T).to(self.key_grad.dtype)
        preferred -= preferred.mean(-1, keepdim=True)
        exponent: Tensor = (preferred / math.log(2)).clamp(-_EXPONENT_AT_MOST, _EXPONENT_AT_MOST).round_()
        return exponent

    def _exponents(self, shifts: Tensor, log_sum: Tensor) -> Tensor:
        """How far each query is from the mean one, in powers of two, (R, N).

        Were a row's scores less the shifts normal with variance s, each key weighted by its power, then log_sum -
        total - mean would be s / 2, and the mean by the row's own weights mean + s. No probability depends on how
        true that is, only how well it is rounded.
        """
        queries, keys = self.queries[..., : self.D], self.keys[:, : self.D]
        total = shifts.logsumexp(-1, keepdim=True)
        weights = (shifts - total).exp_()
        centre = weights.to(keys.dtype) @ keys
        mean = (queries @ centre[..., None])[..., 0] - (weights * shifts).sum(-1, keepdim=True)
        exponent: Tensor = (2 * total + mean - log_sum) / math.log(2)
        return exponent.clamp_(shifts.mean(-1, keepdim=True) / math.log(2), total / math.log(2)).round_()

    def _split(self, operand: Tensor, column: Tensor) -> None:
        """Write a float32 column behind the D first as the sum of two of the operand's number format."""
        high = column.to(operand.dtype)
        operand[..., self.D], operand[..., self.D + 1] = high, column - high.to(column.dtype)


def _times_products(factor: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The products left @ right.T, each times a factor of its own: (N, M) of (N, D) and (M, D)."""
    if left.dtype == torch.bfloat16 and _multiplies_before_rounding():
        product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(left, factor, right, None, "mul")
        return product
    return torch.mm(left, right.T).mul_(factor)


def _multiplies_before_rounding() -> bool:
    """Whether oneDNN is at hand to multiply a bfloat16 product by a factor before it is rounded, in one pass.

    torch's compiler calls that operation by its inner name, and so do we: no other of torch does both at once. No
    version of torch has promised it, so whether it is there is asked as well.
    """
    inner = torch.ops.mkldnn
    return bool(
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkldnn.enabled
        and hasattr(inner, "_is_mkldnn_bf16_supported")
        and inner._is_mkldnn_bf16_supported()
        and hasattr(getattr(inner, "_linear_pointwise", None), "binary")
    )


def _products_of_rows(one: Tensor, other: Tensor) -> Tensor:
    """Sums over D of the products of two tensors (B, H, N, D), (B, H, N) in float32."""
    sum_format = torch.promote_types(one.dtype, torch.float32)
    sums = one.new_empty(one.shape[:3], dtype=sum_format)
    step = max(1, _ROWS_AT_ONCE // one.shape[1])
    for start in range(0, one.shape[2], step):
        some = slice(start, start + step)
        # In memory all heads of a token lie side by side: they are read as they lie.
        left, right = (x[:, :, some].transpose(1, 2).to(sum_format) for x in (one, other))
        sums[:, :, some] = (left * right).sum(-1).transpose(1, 2)
    return sums
