"""Attention on a CPU whose backward pass is little else than matrix products.

torch's fused kernel is quick forward, but its backward pass takes twice the time of the products in it. Here that
pass goes through the scores in squares of keys by queries, transposed, so that two of the three products that sum
over queries or keys read their operands as they lie. Nothing runs along the rows of a square: a row's normaliser
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
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Edge of a square of scores: 2 MB in bfloat16. Smaller ones spend more on laying out the products' operands.
_TOKENS_AT_ONCE = 1024
# Powers of two beyond this would leave the range of numbers when they meet large gradients.
_EXPONENT_AT_MOST = 32
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
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, attended, log_sum = ctx.saved_tensors
        # In memory as the projections want them, (B, N, heads, D).
        query_grad, key_grad, value_grad = (
            one.new_empty(one.shape[0], one.shape[2], one.shape[1], one.shape[3]).transpose(1, 2)
            for one in (query, key, value)
        )
        squares = _Squares(query, ctx.scaling)
        delta = _products_of_rows(outer[0], attended)
        repeats = query.shape[1] // key.shape[1]
        for b in range(query.shape[0]):
            for group in range(key.shape[1]):
                squares.share(key[b, group], value[b, group])
                for head in range(group * repeats, (group + 1) * repeats):
                    squares.attend(query[b, head], outer[0][b, head], delta[b, head], log_sum[b, head])
                    torch.mul(squares.query_grad, ctx.scaling, out=query_grad[b, head])
                key_grad[b, group], value_grad[b, group] = squares.key_grad, squares.value_grad
        return query_grad, key_grad, value_grad, None


class _Squares:
    """Operands, squares of scores and sums of one head at a time, in memory that all heads use in turn.

    Attributes:
        query_grad: Of the latest head, (N, D) in float32, and still to be multiplied by the factor on the scores.
        key_grad: Of all heads since `share`, (N, D) in float32.
        value_grad: The same for the values.
    """

    def __init__(self, like: Tensor, scaling: float) -> None:
        N, D = like.shape[2:]
        self.scaling = scaling
        self.N, self.D, self.edge = N, D, min(N, _TOKENS_AT_ONCE)
        self.queries, self.outer, self.keys, self.values = like.new_zeros(4, N, D + _COLUMNS_ADDED)
        self.keys[:, D : D + 2] = 1
        self.queries[:, D + 2 : D + 4] = 1
        self.probabilities, self.scores_grad = like.new_empty(2, self.edge * self.edge)
        self.value = like.new_empty(N, D)
        self.key_scale = like.new_empty(N, 1)
        self.part = like.new_empty(self.edge, D)
        sum_format = torch.promote_types(like.dtype, torch.float32)
        self.query_grad, self.key_grad, self.value_grad = like.new_zeros(3, N, D, dtype=sum_format)

    def share(self, key: Tensor, value: Tensor) -> None:
        """Take the key head (N, D) and value head of the heads to come."""
        self.keys[:, : self.D], self.value = key, value
        self.key_grad.zero_()
        self.value_grad.zero_()

    def attend(self, query: Tensor, outer: Tensor, delta: Tensor, log_sum: Tensor) -> None:
        """Find the gradients of one head: of what it asked (N, D), and where it looked.

        Args:
            query: (N, D).
            outer: Gradient of what the head attended to, (N, D).
            delta: What `_products_of_rows` gives of that and of what it attended to, (N).
            log_sum: Logarithms of the sums of its exponentiated scores, (N).
        """
        self._lay_out(query, outer, delta, log_sum)
        D, queries, outer = self.D, self.queries, self.outer
        self.query_grad.zero_()
        for keyed in self._slices():
            keys, values = self.keys[keyed], self.values[keyed]
            for asked in self._slices():
                shape = len(keys), len(queries[asked])
                probabilities, scores_grad = (
                    one[: shape[0] * shape[1]].view(shape) for one in (self.probabilities, self.scores_grad)
                )
                torch.mm(keys, queries[asked].T, out=probabilities).exp_()
                self._add(self.value_grad[keyed], probabilities, outer[asked, :D], self.key_scale[keyed])
                torch.mm(values, outer[asked].T, out=scores_grad).mul_(probabilities)
                self._add(self.key_grad[keyed], scores_grad, queries[asked, :D])
                self._add(self.query_grad[asked], scores_grad.T, keys[:, :D])

    def _lay_out(self, query: Tensor, outer: Tensor, delta: Tensor, log_sum: Tensor) -> None:
        """Write one head's operands, with what is to be subtracted in their additional columns."""
        D = self.D
        torch.mul(query, self.scaling, out=self.queries[:, :D])
        keys = self.keys[:, :D]
        # How far the mean query prefers each key to the others.
        preferred = (keys @ self.queries[:, :D].mean(0)).to(log_sum.dtype)
        preferred -= preferred.mean()
        key_exponent = (preferred / math.log(2)).clamp(-_EXPONENT_AT_MOST, _EXPONENT_AT_MOST).round_()
        self.key_scale[:, 0] = torch.exp2(key_exponent)
        torch.mul(self.value, self.key_scale, out=self.values[:, :D])
        self.values[:, D : D + 2] = self.key_scale
        shifts = key_exponent * math.log(2)
        self._split(self.keys, D + 2, -shifts)
        # Were a row's scores less these shifts normal with variance s, each key weighted by its power, then log_sum -
        # total - mean would be s / 2, and the mean by the row's own weights mean + s. No probability depends on how
        # true that is, only how well it is rounded.
        total = float(shifts.logsumexp(0))
        weights = (shifts - total).exp_()
        mean = self.queries[:, :D] @ (weights.to(keys.dtype) @ keys) - weights @ shifts
        exponent = (2 * total + mean - log_sum) / math.log(2)
        exponent.clamp_(float(key_exponent.mean()), total / math.log(2)).round_()
        self._split(self.queries, D, exponent * math.log(2) - log_sum)
        back = torch.exp2(-exponent)
        torch.mul(outer, back[:, None], out=self.outer[:, :D])
        self._split(self.outer, D, -delta * back)

    def _split(self, operand: Tensor, at: int, column: Tensor) -> None:
        """A float32 column as the sum of two of the operand's number format, the first of them number `at`."""
        high = column.to(operand.dtype)
        operand[:, at], operand[:, at + 1] = high, column - high.to(column.dtype)

    def _add(self, total: Tensor, left: Tensor, right: Tensor, scale: Tensor | None = None) -> None:
        """Sum products in float32, whatever they are rounded to; `scale` (rows, 1) holds powers of two."""
        part = torch.mm(left, right, out=self.part[: len(left)])
        total += part if scale is None else part.mul_(scale)

    def _slices(self) -> list[slice]:
        return [slice(start, start + self.edge) for start in range(0, self.N, self.edge)]


def _products_of_rows(one: Tensor, other: Tensor) -> Tensor:
    """Sums over D of the products of two tensors (B, H, N, D), (B, H, N) in float32."""
    sum_format = torch.promote_types(one.dtype, torch.float32)
    sums = one.new_empty(one.shape[:3], dtype=sum_format)
    step = max(1, _TOKENS_AT_ONCE // one.shape[1])
    for start in range(0, one.shape[2], step):
        some = slice(start, start + step)
        # In memory all heads of a token lie side by side: they are read as they lie.
        left, right = (x[:, :, some].transpose(1, 2).to(sum_format) for x in (one, other))
        sums[:, :, some] = (left * right).sum(-1).transpose(1, 2)
    return sums
