"""The parts computed in ways of our own give what plain autograd gives, in every number format."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from medvisionllama.language import attention, attention_gradient, gated, pieces


def heads(n_tokens: int, spread: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values and a gradient, laid out in memory as projections give them: (B, N, heads, D)."""
    generator = torch.Generator().manual_seed(1)
    return tuple(  # type: ignore[return-value]
        (torch.randn(2, n_tokens, n_heads, 16, generator=generator) * factor).to(dtype).transpose(1, 2)
        for n_heads, factor in ((6, spread), (2, 1.0), (2, 1.0), (6, 1.0))
    )


def plain(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    repeats = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(repeats, dim=1) for one in (key, value))
    return (query @ key.transpose(2, 3) * scaling).softmax(-1) @ value


def gradients(act: Callable[..., Tensor], outer: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    inputs = tuple(one.detach().requires_grad_() for one in inputs)
    result = act(*inputs)
    return result.detach(), *torch.autograd.grad(result, inputs, outer.to(result.dtype))


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


# Scores whose spread is nought, the usual one, and so large that most weights are 0.
@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
@pytest.mark.parametrize(
    ("keys", "scores"), [(7, 35), (64, 200), (64, 9999)]
)  # of 37 tokens: both, one, none in pieces
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
def test_attentions_gradient_is_the_exact_one(
    spread: float, keys: int, scores: int, dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_gradient, "_KEYS_AT_ONCE", keys)
    monkeypatch.setattr(attention_gradient, "_SCORES_AT_ONCE", scores)
    *inputs, outer = heads(37, spread, dtype)
    before = [one.clone() for one in (*inputs, outer)]
    found = gradients(lambda *three: attention_gradient.attend(*three, 0.3), outer, *inputs)
    exact = gradients(lambda *three: plain(*three, 0.3), outer.double(), *(one.double() for one in inputs))
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other, atol=bound * 10, rtol=bound * 10)
    for one, other in zip((*inputs, outer), before, strict=True):
        assert torch.equal(one, other), "what was handed in is left as it was"


needs_onednn = pytest.mark.skipif(
    not attention_gradient._multiplies_before_rounding(), reason="no bfloat16 of oneDNN on this processor"
)
either_way = pytest.mark.parametrize("at_once", [pytest.param(True, marks=needs_onednn), False])


@either_way
@pytest.mark.parametrize(
    ("spread", "keys", "scores", "bound"),
    [
        (1.0, 4096, 1 << 21, 1.05),
        (4.0, 4096, 1 << 21, 1.05),
        # Keys in three blocks, queries in 16: as many rounded sums as 8,192 tokens make. The kernel has its few still.
        (1.0, 512, 512 * 96, 1.75),
    ],
)
def test_bfloat16_gradients_are_no_worse_than_the_fused_kernels(
    spread: float, keys: int, scores: int, bound: float, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_gradient, "_KEYS_AT_ONCE", keys)
    monkeypatch.setattr(attention_gradient, "_SCORES_AT_ONCE", scores)
    monkeypatch.setattr(attention_gradient, "_multiplies_before_rounding", lambda: at_once)
    *inputs, outer = heads(1500, spread, torch.bfloat16)

    def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value, scale=0.25, enable_gqa=True)

    exact = gradients(lambda *three: plain(*three, 0.25), outer.double(), *(one.double() for one in inputs))
    ours = gradients(lambda *three: attention_gradient.attend(*three, 0.25), outer, *inputs)
    theirs = gradients(fused, outer, *inputs)
    assert torch.equal(ours[0], theirs[0]), "the forward pass is the kernel's"
    squares = [sum(error(a, b) ** 2 for a, b in zip(got[1:], exact[1:], strict=True)) for got in (ours, theirs)]
    assert squares[0] <= squares[1] * bound
    assert max(error(a, b) for a, b in zip(ours[1:], exact[1:], strict=True)) <= 0.0075


def a_factor_and_operands() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(*shape, generator=generator) for shape in ((70, 50), (70, 160), (50, 160))]


def error_of_the_product(factor: Tensor, left: Tensor, right: Tensor) -> float:
    before = factor.clone()
    found = attention_gradient._times_products(factor, left, right)
    if factor.dtype == torch.bfloat16 and attention_gradient._multiplies_before_rounding():
        assert torch.equal(factor, before)
    return error(found, before.double() * (left.double() @ right.double().T))


def test_a_product_times_a_factor_in_float32() -> None:
    assert error_of_the_product(*a_factor_and_operands()) < 1e-6


@needs_onednn
def test_a_product_times_a_factor_is_rounded_once() -> None:
    half = [one.to(torch.bfloat16) for one in a_factor_and_operands()]
    assert error_of_the_product(*half) < 0.0018, "bfloat16 rounds to within 1/512, on average by 0.0017"


@pytest.mark.parametrize("lacking", ["processor", "operation", "overload", "question", "leave"])
def test_without_onednn_the_product_is_rounded_as_well(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {
        "_is_mkldnn_bf16_supported": lambda: lacking != "processor",
        "_linear_pointwise": SimpleNamespace(**({} if lacking == "overload" else {"binary": None})),
    }
    whole.pop({"operation": "_linear_pointwise", "question": "_is_mkldnn_bf16_supported"}.get(lacking, ""), None)
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**whole))
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", lacking != "leave")
    assert not attention_gradient._multiplies_before_rounding()
    assert 0.002 < error_of_the_product(*(one.to(torch.bfloat16) for one in a_factor_and_operands())) < 0.003


def test_weights_far_from_even_need_the_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: with every row shifted alike, large scores are rounded worse."""
    *inputs, outer = heads(1500, 4.0, torch.bfloat16)
    exact = gradients(lambda *three: plain(*three, 0.25), outer.double(), *(one.double() for one in inputs))
    errors = []
    for clamp in (Tensor.clamp_, lambda column, low, high: column.copy_(high.expand_as(column))):
        monkeypatch.setattr(Tensor, "clamp_", clamp)
        found = gradients(lambda *three: attention_gradient.attend(*three, 0.25), outer, *inputs)
        errors.append(error(found[3], exact[3]))
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize(("gain", "weight"), [(7.0, 0.29), (8.5, 0.54), (12.0, 0.87)])
def test_a_key_that_every_query_looks_at_is_rounded_no_worse_than_by_the_fused_kernel(
    gain: float, weight: float
) -> None:
    """An attention sink: no one shift of a row brings its score and those of all other keys near 0."""
    query, key, value, outer = heads(1500, 1.0, torch.float32)
    direction = torch.full((16,), 0.25)
    key[:, :, 0] = gain * direction
    *inputs, outer = (one.to(torch.bfloat16) for one in (query + 4 * direction, key, value, outer))

    def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value, scale=0.25, enable_gqa=True)

    scores = inputs[0].double() @ inputs[1].double().repeat_interleave(3, 1).transpose(2, 3) * 0.25
    assert float(scores.softmax(-1)[..., 0].mean()) == pytest.approx(weight, abs=0.01)
    exact = gradients(lambda *three: plain(*three, 0.25), outer.double(), *(one.double() for one in inputs))
    ours = gradients(lambda *three: attention_gradient.attend(*three, 0.25), outer, *inputs)
    theirs = gradients(fused, outer, *inputs)
    for mine, its, truth in zip(ours[1:], theirs[1:], exact[1:], strict=True):
        assert error(mine, truth) <= 1.15 * error(its, truth)


def test_many_tokens_in_bfloat16_take_our_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def attend(query: Tensor, *others: object) -> Tensor:
        asked.append(query.shape[2])
        return query

    monkeypatch.setattr(attention, "attend", attend)
    for n_tokens in (1024, 1025):
        for dtype in (torch.float32, torch.bfloat16):
            for mask in (None, torch.zeros(1, 1, n_tokens, n_tokens, dtype=dtype)):
                query = torch.zeros(1, 2, n_tokens, 8, dtype=dtype, requires_grad=True)
                attention.bidirectional_attention(nn.Module(), query, query, query, mask, 1.0)
                with torch.no_grad():
                    attention.bidirectional_attention(nn.Module(), query, query, query, mask, 1.0)
    assert asked == [1025]


def test_only_what_the_kernel_takes_for_granted_takes_our_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Called by its inner name, the kernel reads strides of 1 into any memory, and gives nonsense for others."""
    asked: list[None] = []
    own = attention_gradient.attend
    monkeypatch.setattr(attention, "attend", lambda *them: asked.append(None) or own(*them))
    *inputs, _ = heads(1030, 1.0, torch.bfloat16)
    inputs = [one.requires_grad_() for one in inputs]
    wanted = attention.bidirectional_attention(nn.Module(), *inputs, None, 0.25)[0]
    assert len(asked) == 1, "the control: as they are they take it"
    for strange in range(3):
        them = list(inputs)
        them[strange] = them[strange].transpose(2, 3).contiguous().transpose(2, 3)  # the same numbers, D strides N
        found = attention.bidirectional_attention(nn.Module(), *them, None, 0.25)[0]
        torch.testing.assert_close(found, wanted, atol=0.01, rtol=0.02)
    narrow = inputs[2][..., :8]
    found = attention.bidirectional_attention(nn.Module(), *inputs[:2], narrow, None, 0.25)[0]
    torch.testing.assert_close(found, wanted[..., :8], atol=0.01, rtol=0.02)
    short = [one[:, :, :500] for one in inputs[1:]]
    exact = plain(*(one.double() for one in (inputs[0], *short)), 0.25).transpose(1, 2)
    found = attention.bidirectional_attention(nn.Module(), inputs[0], *short, None, 0.25)[0]
    torch.testing.assert_close(found.double(), exact, atol=0.01, rtol=0.02)
    assert len(asked) == 1


@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_unit_gives_autograds_bits_and_keeps_its_inputs_alone(
    activation: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.activations import ACT2FN

    monkeypatch.setattr(pieces, "_NUMBERS_AT_ONCE", 100)  # several pieces, the last one shorter
    act = ACT2FN[activation]
    generator = torch.Generator().manual_seed(2)
    gate, up, outer = (torch.randn(2, 7, 12, generator=generator).mul_(3).to(dtype) for _ in range(3))
    found = gradients(lambda a, b: gated._Gated.apply(a, b, activation), outer, gate, up)
    plainly = gradients(lambda a, b: act(a) * b, outer, gate, up)
    for one, other in zip(found, plainly, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=1e-6)  # vector units and their rest may differ in a bit
    saved: list[Tensor] = []
    with saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one):
        gated._Gated.apply(gate.requires_grad_(), up.requires_grad_(), activation)
    assert [one.data_ptr() for one in saved] == [gate.data_ptr(), up.data_ptr()]


def test_unknown_activations_are_left_to_the_module() -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    numbers = SimpleNamespace(hidden_size=8, intermediate_size=12, mlp_bias=False, hidden_act="relu")
    mlp = LlamaMLP(numbers)  # type: ignore[no-untyped-call]
    x = torch.randn(1, 3, 8)
    expected = mlp(x)
    assert torch.equal(gated.GatedMLP(mlp, "relu")(x), expected)
