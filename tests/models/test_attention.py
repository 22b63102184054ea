"""Every attention against plain loops over tokens and features, its maps, and how its cost grows."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medvisionllama.models.attention import (
    ChannelAttention,
    EfficientAttention,
    ParallelAttention,
    SelfAttention,
    SequentialAttention,
    SpatialAttention,
    build_attention,
)

WIDTH, HEADS, GRID = 8, 2, (2, 3, 2)
N, D = math.prod(GRID), WIDTH // HEADS
KINDS = ("self", "efficient", "channel", "spatial", "hybrid-sequential", "hybrid-parallel", "hybrid-interleaved")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(2, N, WIDTH)


def softmax(values: list[float]) -> list[float]:
    exponentials = [math.exp(value) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def projected(attention: SelfAttention, one: Tensor) -> list[list[list[list[float]]]]:
    """Queries, keys and values of one volume's tokens as nested lists ``[q k v][head][token][feature]``."""
    rows = (one @ attention.qkv.weight.T + attention.qkv.bias).tolist()
    return [
        [[row[part * WIDTH + head * D : part * WIDTH + (head + 1) * D] for row in rows] for head in range(HEADS)]
        for part in range(3)
    ]


def weights_by_loops(attention: SelfAttention, one: Tensor) -> list[list[list[float]]]:
    """``[head][query][key]``, from the formulas of the two papers."""
    queries, keys, _ = projected(attention, one)
    maps = []
    for q, k in zip(queries, keys, strict=True):
        if isinstance(attention, EfficientAttention):
            over_features = [softmax(row) for row in q]
            over_tokens = [softmax([row[d] for row in k]) for d in range(D)]
            scores = [
                [sum(over_features[i][d] * over_tokens[d][j] for d in range(D)) for j in range(N)] for i in range(N)
            ]
        else:
            scores = [
                softmax([sum(a * b for a, b in zip(q[i], k[j], strict=True)) / math.sqrt(D) for j in range(N)])
                for i in range(N)
            ]
        maps.append(scores)
    return maps


def attended_by_loops(attention: SelfAttention, one: Tensor) -> Tensor:
    values, maps = projected(attention, one)[2], weights_by_loops(attention, one)
    mixed = [
        [sum(maps[h][i][j] * values[h][j][d] for j in range(N)) for h in range(HEADS) for d in range(D)]
        for i in range(N)
    ]
    return torch.tensor(mixed) @ attention.out.weight.T + attention.out.bias


@pytest.mark.parametrize("kind", [SelfAttention, EfficientAttention])
def test_mixing_attention_agrees_with_plain_loops(kind: type[SelfAttention], tokens: Tensor) -> None:
    attention = kind(WIDTH, HEADS, dropout=0.0)
    for one, result in zip(tokens, attention(tokens, GRID), strict=True):
        torch.testing.assert_close(result, attended_by_loops(attention, one))


def test_efficient_attention_is_another_function_than_self_attention(tokens: Tensor) -> None:
    plain, efficient = SelfAttention(WIDTH, HEADS, 0.0), EfficientAttention(WIDTH, HEADS, 0.0)
    efficient.load_state_dict(plain.state_dict())
    assert not torch.allclose(plain(tokens, GRID), efficient(tokens, GRID), atol=1e-3)


@pytest.mark.parametrize("kind", [SelfAttention, EfficientAttention])
def test_rows_of_a_map_sum_to_1_and_give_the_attention(kind: type[SelfAttention], tokens: Tensor) -> None:
    attention = kind(WIDTH, HEADS, dropout=0.0)
    seen = attention.map(tokens)
    torch.testing.assert_close(seen.sum(-1), torch.ones(2, HEADS, N))
    assert (seen >= 0).all()
    torch.testing.assert_close(seen[0], torch.tensor(weights_by_loops(attention, tokens[0])))
    values = attention.qkv(tokens)[..., 2 * WIDTH :].view(2, N, HEADS, D).transpose(1, 2)
    torch.testing.assert_close(attention.out((seen @ values).transpose(1, 2).flatten(2)), attention(tokens, GRID))
    torch.testing.assert_close(attention.map(tokens, slice(3, 7)), seen[:, :, 3:7])


def test_channel_attention_agrees_with_plain_loops(tokens: Tensor) -> None:
    attention = ChannelAttention(WIDTH, reduction=4)
    first, second = attention.gate[0], attention.gate[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    assert first.out_features == 2
    for one, result in zip(tokens.tolist(), attention(tokens, GRID), strict=True):
        squeezed = [sum(row[e] for row in one) / N for e in range(WIDTH)]
        inner = [max(0.0, first.bias.tolist()[h] + dot(first.weight[h], squeezed)) for h in range(2)]
        gates = [1 / (1 + math.exp(-second.bias.tolist()[e] - dot(second.weight[e], inner))) for e in range(WIDTH)]
        torch.testing.assert_close(result, torch.tensor([[row[e] * gates[e] for e in range(WIDTH)] for row in one]))


def dot(weights: Tensor, values: list[float]) -> float:
    return sum(a * b for a, b in zip(weights.tolist(), values, strict=True))


def test_spatial_attention_agrees_with_plain_loops(tokens: Tensor) -> None:
    attention = SpatialAttention(kernel=3)
    convolution = attention.gate[0]
    assert isinstance(convolution, nn.Conv3d)
    assert convolution.bias is not None
    weight, bias = convolution.weight[0].tolist(), convolution.bias.item()
    I, J, K = GRID  # noqa: E741
    for one, result in zip(tokens.tolist(), attention(tokens, GRID), strict=True):
        pooled = [[sum(row) / WIDTH for row in one], [max(row) for row in one]]
        for place, row in enumerate(one):
            i, j, k = place // (J * K), place // K % J, place % K
            score = bias
            for c in range(2):
                for a in (-1, 0, 1):
                    for b in (-1, 0, 1):
                        for d in (-1, 0, 1):
                            if 0 <= i + a < I and 0 <= j + b < J and 0 <= k + d < K:
                                there = ((i + a) * J + j + b) * K + k + d
                                score += weight[c][a + 1][b + 1][d + 1] * pooled[c][there]
            gate = 1 / (1 + math.exp(-score))
            torch.testing.assert_close(result[place], torch.tensor([value * gate for value in row]))


def test_hybrids_join_their_parts_as_they_are_called(tokens: Tensor) -> None:
    sequential = build_attention("hybrid-sequential", WIDTH, HEADS, 0.0)
    assert isinstance(sequential, SequentialAttention)
    efficient, channel = sequential
    torch.testing.assert_close(sequential(tokens, GRID), channel(efficient(tokens, GRID), GRID))

    parallel = build_attention("hybrid-parallel", WIDTH, HEADS, 0.0)
    assert isinstance(parallel, ParallelAttention)
    efficient, channel = parallel
    torch.testing.assert_close(parallel(tokens, GRID), efficient(tokens, GRID) + channel(tokens, GRID))

    interleaved = build_attention("hybrid-interleaved", WIDTH, HEADS, 0.0)
    assert isinstance(interleaved, SequentialAttention)
    assert [type(part) for part in interleaved] == [EfficientAttention, ChannelAttention] * 2
    assert parameters(interleaved) == 2 * parameters(sequential) > parameters(sequential) == parameters(parallel)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "spatial"])
def test_only_spatial_attention_knows_places(kind: str, tokens: Tensor) -> None:
    """Permuting the tokens permutes the result and nothing else."""
    order = torch.randperm(N)
    attention = build_attention(kind, WIDTH, HEADS, 0.0)  # type: ignore[arg-type]
    torch.testing.assert_close(attention(tokens[:, order], GRID), attention(tokens, GRID)[:, order])


def test_spatial_attention_knows_places(tokens: Tensor) -> None:
    order, attention = torch.randperm(N), SpatialAttention()
    assert not torch.allclose(attention(tokens[:, order], GRID), attention(tokens, GRID)[:, order])


def flops(kind: str, grid: tuple[int, int, int]) -> int:
    with torch.device("meta"):
        attention = build_attention(kind, 64, 4, 0.0)  # type: ignore[arg-type]
        tokens = torch.empty(1, math.prod(grid), 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        attention(tokens, grid)
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("self", "channel")])
def test_cost_grows_linearly(kind: str) -> None:
    """At 512, 4,096 and 32,768 tokens: eight times the tokens, eight times the work."""
    small, medium, large = (flops(kind, (edge, edge, edge)) for edge in (8, 16, 32))
    # Not to the last operation: the gate of channel attention works on one mean, however many tokens there are.
    assert medium == pytest.approx(8 * small, rel=1e-3)
    assert large == pytest.approx(8 * medium, rel=1e-3)


def test_products_of_channel_attention_do_not_grow_at_all() -> None:
    assert flops("channel", (8, 8, 8)) == flops("channel", (32, 32, 32)) == 2 * 2 * 64 * 4


def test_cost_of_self_attention_does_not() -> None:
    small, medium, large = (flops("self", (edge, edge, edge)) for edge in (8, 16, 32))
    assert medium > 20 * small
    assert large > 50 * medium
