from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from medvisionllama.losses import segmentation_loss
from medvisionllama.models.medvisionllama import ModelConfig
from medvisionllama.models.memory import LOSS_MAPS, training_memory_gb
from medvisionllama.models.middle import MiddleConfig
from medvisionllama.models.network import NetworkConfig, build_network
from medvisionllama.models.peers.dynunet import DynUNetConfig

U = ModelConfig(
    in_channels=2,
    out_channels=3,
    input_size=(32, 32, 32),
    stem="convolutions",
    decoder="ushape",
    depth=2,
    middle=MiddleConfig(kind="none"),
)


def peak_gb(config: NetworkConfig, batch_size: int) -> float:
    """What the second step of a training takes at most, by the profiler's account of every allocation."""
    model = build_network(config).train()
    optimizer = torch.optim.AdamW(model.parameters())
    image = torch.randn(batch_size, config.in_channels, *config.input_size)
    label = torch.randint(3, (batch_size, *config.input_size))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        logits = model(image)
        outputs = logits if isinstance(logits, tuple) else (logits,)
        torch.stack([segmentation_loss(output, label, "dice_ce") for output in outputs]).sum().backward()
        optimizer.step()

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    held = most = 0
    for event in events:
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    weights = sum(p.numel() * 4 for p in model.parameters())
    return (most + 3 * weights + image.numel() * 4) / 1e9


@pytest.mark.parametrize(
    ("batch_size", "config"), [(3, U), (2, replace(U, input_size=(48, 48, 48))), (2, replace(U, depth=6, width=96))]
)
def test_the_estimate_is_near_what_a_step_takes(batch_size: int, config: ModelConfig) -> None:
    estimated = training_memory_gb(config, config.input_size, batch_size, half_precision=False)
    assert 0.7 < estimated / peak_gb(config, batch_size) < 1.5


def test_the_coarser_logits_of_dynunet_are_counted() -> None:
    config = DynUNetConfig(2, 3, (64, 64, 32), base_features=2, deep_supervision=True)
    model = build_network(config).train()
    outputs = model(torch.zeros(1, 2, 64, 64, 32))
    assert [tuple(output.shape) for output in outputs] == [(1, 3, 64, 64, 32)] * config.full_size_outputs
    assert config.full_size_outputs == 3
    estimated = training_memory_gb(config, config.input_size, 2, half_precision=False)
    peak = peak_gb(config, 2)
    assert 1 < estimated / peak < 1.5
    uncounted = 2 * 4 * 64 * 64 * 32 * LOSS_MAPS * 3 * 2 / 1e9
    assert estimated - uncounted < peak, "negative control: with one output alone it would promise too much"


def test_memory_grows_with_window_and_batch_and_shrinks_with_precision() -> None:
    one = training_memory_gb(U, (32, 32, 32), 1, half_precision=False)
    three = training_memory_gb(U, (32, 32, 32), 3, half_precision=False)
    larger = training_memory_gb(U, (64, 32, 32), 1, half_precision=False)
    assert one < larger < three
    assert training_memory_gb(U, (32, 32, 32), 3, half_precision=True) < three
