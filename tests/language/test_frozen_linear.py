"""Frozen maps computed together give what the modules give alone, and step aside where a module is more than that."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from graph_nodes import kinds_of_nodes
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from medvisionllama.language import attention_gradient, frozen_linear, gated, lean, pieces
from medvisionllama.language.lean import FrozenRMSNorm


def frozen(n_in: int, n_out: int, bias: bool = False, dtype: torch.dtype = torch.float64) -> nn.Linear:
    return nn.Linear(n_in, n_out, bias=bias, dtype=dtype).requires_grad_(False)


class Unit(nn.Module):
    """The parts of `LlamaMLP`."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = frozen(6, 10, dtype=dtype), frozen(6, 10, dtype=dtype)
        self.down_proj = frozen(10, 6, dtype=dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.down_proj(nn.functional.silu(self.gate_proj(tokens)) * self.up_proj(tokens))
        return result


def result_and_gradient(act: Callable[[Tensor], Tensor], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient twice over one graph, from a gradient that differs from place to place."""
    tokens = tokens.detach().requires_grad_()
    before = tokens.detach().clone()
    result = act(tokens)
    outer = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).view(result.shape)
    first, again = (torch.autograd.grad(result, tokens, outer, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again), "nothing that is kept is written over"
    assert torch.equal(tokens, before)
    return result.detach(), first


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(2, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("bias", [False, True])
def test_joined_maps_are_the_modules(tokens: Tensor, bias: bool) -> None:
    maps = [frozen(6, width, bias) for width in (8, 4, 4)]
    joined = result_and_gradient(lambda x: torch.cat(frozen_linear.project(x, *maps), -1), tokens)
    alone = result_and_gradient(lambda x: torch.cat([one(x) for one in maps], -1), tokens)
    for one, other in zip(joined, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-14, rtol=1e-12)
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        frozen_linear.project(tokens.requires_grad_(), *maps)
    assert {one.data_ptr() for one in kept} == {one.weight.data_ptr() for one in maps}


def test_results_that_nobody_asks_for_have_no_part_in_the_gradient(tokens: Tensor) -> None:
    maps = [frozen(6, 8), frozen(6, 4)]
    found = result_and_gradient(lambda x: frozen_linear.project(x, *maps)[1], tokens)[1]
    torch.testing.assert_close(found, result_and_gradient(maps[1], tokens)[1], atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("at_once", [3, 2048])  # of 14 tokens: an uneven end, and all of them
def test_the_frozen_unit_is_the_plain_one(tokens: Tensor, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gated, "_TOKENS_AT_ONCE", at_once)
    monkeypatch.setattr(pieces, "_NUMBERS_AT_ONCE", 8)
    unit = Unit()
    plain = result_and_gradient(unit, tokens)
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        found = result_and_gradient(gated.GatedMLP(unit, "silu"), tokens)
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-14, rtol=1e-12)
    weights = {one.data_ptr() for one in unit.parameters()}
    assert [tuple(one.shape) for one in kept if one.data_ptr() not in weights] == [(14, 10)] * 2, "gate(x) and up(x)"


def test_a_wrong_slope_would_be_noticed(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    unit = Unit()
    plain = result_and_gradient(unit, tokens)
    silu = gated._ACTIVATIONS["silu"]
    monkeypatch.setitem(gated._ACTIVATIONS, "silu", gated._Activation(silu.forward, lambda g, x: g))
    found = result_and_gradient(gated.GatedMLP(unit, "silu"), tokens)
    torch.testing.assert_close(found[0], plain[0], atol=1e-14, rtol=1e-12)
    assert (found[1] - plain[1]).abs().max() > 1e-2


def test_the_frozen_unit_rounds_no_worse_than_its_parts(tokens: Tensor) -> None:
    unit = Unit(torch.bfloat16)
    exact_unit = Unit()
    exact_unit.load_state_dict({name: value.double() for name, value in unit.state_dict().items()})
    half = tokens.to(torch.bfloat16)
    exact = result_and_gradient(exact_unit, half.double())
    plain = result_and_gradient(unit, half)
    found = result_and_gradient(gated.GatedMLP(unit, "silu"), half)
    assert torch.equal(found[0], plain[0])
    ours, theirs = (float((one[1].double() - exact[1]).norm()) for one in (found, plain))
    assert ours <= 1.1 * theirs


def test_counters_of_operations_see_what_is_done_without_them(tokens: Tensor) -> None:
    """They hook all modules of the process."""
    with FlopCounterMode(display=False) as counter:
        unit = gated.GatedMLP(Unit(), "silu")
        result = unit(tokens.requires_grad_())
        assert result.grad_fn is not None
        assert kinds_of_nodes(result)["_FrozenUnitBackward"] == 1
        result.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 3 * 14 * 6 * 10, "three maps, and three gradients of inputs"


def test_whatever_is_more_than_a_frozen_map_is_called() -> None:
    tokens = torch.randn(3, 6, requires_grad=True)

    def may_be_joined(change: Callable[[nn.Linear], object], tokens: Tensor = tokens) -> bool:
        maps = [frozen(6, 4, dtype=torch.float32) for _ in range(2)]
        change(maps[1])
        return frozen_linear.can_be_joined(tokens, *maps)

    assert may_be_joined(lambda one: None), "the control"
    assert not may_be_joined(lambda one: one.requires_grad_())
    assert not may_be_joined(lambda one: one.register_forward_hook(lambda *seen: None))
    assert not may_be_joined(lambda one: one.register_forward_pre_hook(lambda *seen: None))
    assert not may_be_joined(lambda one: one.register_full_backward_hook(lambda *seen: None))
    assert not may_be_joined(lambda one: setattr(one, "forward", lambda x: x))
    assert not may_be_joined(lambda one: one.double())
    assert not may_be_joined(lambda one: None, tokens.detach())
    assert not frozen_linear.can_be_joined(tokens, nn.Sequential(frozen(6, 4)))
    with torch.no_grad():
        assert not may_be_joined(lambda one: None)
    with torch.autocast("cpu", torch.bfloat16):
        assert not may_be_joined(lambda one: None)


def on_meta() -> list[nn.Linear]:
    with torch.device("meta"):
        return [frozen(6, 4, dtype=torch.float32) for _ in range(2)]


def test_maps_on_the_meta_device_are_joined() -> None:
    """Autocast does not know that device, and refuses to be asked about it."""
    tokens = torch.empty(3, 6, device="meta", requires_grad=True)
    assert frozen_linear.can_be_joined(tokens, *on_meta())
    sum(one.sum() for one in frozen_linear.project(tokens, *on_meta())).backward()  # type: ignore[union-attr]
    assert tokens.grad is not None
    assert tokens.grad.shape == tokens.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_asked_for_inside_autocast_are_those_from_outside(dtype: torch.dtype) -> None:
    """Each of our own backward passes, with the forward pass outside."""
    generator = torch.Generator().manual_seed(6)
    maps = [frozen(6, width, dtype=dtype) for width in (8, 4)]
    unit = gated.GatedMLP(Unit(dtype), "silu")
    norm = FrozenRMSNorm(Norm(torch.ones(6, dtype=dtype), False))
    acts: list[tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = [
        ((2, 7, 6), lambda x: torch.cat(frozen_linear.project(x, *maps), -1)),
        ((2, 7, 6), unit),
        ((2, 7, 6), norm),
        ((2, 7, 6), lambda x: gated._Gated.apply(x, x.flip(0), "silu")),  # type: ignore[no-untyped-call]
        ((1, 2, 40, 16), lambda x: attention_gradient.attend(x, x[:, :1], x[:, 1:], 0.3)),
    ]
    for shape, act in acts:
        leaf = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
        result = act(leaf)
        outer = torch.randn(result.shape, generator=generator).to(dtype)
        (outside,) = torch.autograd.grad(result, leaf, outer, retain_graph=True)
        for other in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", other):
                (inside,) = torch.autograd.grad(result, leaf, outer, retain_graph=True)
            assert torch.equal(inside, outside)


class Norm(nn.Module):
    """`LlamaRMSNorm`, or Gemma 2's."""

    def __init__(self, weight: Tensor, is_gemma: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        setattr(self, "eps" if is_gemma else "variance_epsilon", 1e-3)


@pytest.mark.parametrize("is_gemma", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 0.012)])
def test_a_norm_is_undone_from_its_result(is_gemma: bool, dtype: torch.dtype, bound: float) -> None:
    generator = torch.Generator().manual_seed(4)
    x, outer = (torch.randn(5, 40, generator=generator).to(dtype) for _ in range(2))
    outer += x  # partly along the tokens, where two large numbers cancel
    # From 0.01 to 3, of either sign.
    weight = (torch.logspace(-2, 0.5, 40) * torch.randn(40, generator=generator).sign()).to(dtype)
    kept: list[Tensor] = []
    gradients = []
    for keeps_result in (False, True):
        norm = FrozenRMSNorm(Norm(weight, is_gemma), keeps_result=keeps_result)
        leaf = x.clone().requires_grad_()
        with saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
            result = norm(leaf)
        gradients.append(torch.autograd.grad(result, leaf, outer)[0].double())
        assert (kept[-3].data_ptr() == result.data_ptr()) == keeps_result
        assert (kept[-3].data_ptr() == leaf.data_ptr()) != keeps_result
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < bound


def test_a_norm_that_cannot_be_undone_keeps_its_input() -> None:
    weight = torch.ones(6)
    weight[2] = 0
    norm = FrozenRMSNorm(Norm(weight, False), keeps_result=True)
    x = torch.randn(4, 6, requires_grad=True)
    outer = torch.randn(4, 6)
    (found,) = torch.autograd.grad(norm(x), x, outer)
    plainly = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3) * weight
    torch.testing.assert_close(found, torch.autograd.grad(plainly, x, outer)[0])


def test_a_result_that_was_written_over_is_refused() -> None:
    x = torch.randn(4, 6, requires_grad=True)
    result = FrozenRMSNorm(Norm(torch.ones(6), False), keeps_result=True)(x)
    result += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


def test_a_norm_that_keeps_nothing_does_not_look_at_its_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[None] = []
    factor = lean._factor
    monkeypatch.setattr(lean, "_factor", lambda *given: looked.append(None) or factor(*given))
    norm = FrozenRMSNorm(Norm(torch.ones(6), False), keeps_result=True)
    norm(torch.ones(4, 6))
    with torch.no_grad():
        norm(torch.ones(4, 6, requires_grad=True))
    assert not looked
    norm(torch.ones(4, 6, requires_grad=True))
    assert looked, "the control"
