"""What a network costs: parameters and counted floating-point operations. Nothing is estimated, nothing computed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from medvisionllama.models.attention import Shape
from medvisionllama.models.medvisionllama import ModelConfig, build


@dataclass(frozen=True)
class Cost:
    """The cost of one forward pass over one volume.

    Attributes:
        trainable_parameters: Numbers that training changes.
        frozen_parameters: Numbers it does not: the block's, and the LoRA mappers' random start.
        flops: Floating-point operations of all products and convolutions; a multiplication and its addition are two.
        input_size: Voxels along I, J, K.
        tokens: How many image tokens pass the middle stage.
    """

    trainable_parameters: int
    frozen_parameters: int
    flops: int
    input_size: Shape
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """The form of `models show --json`."""
        return asdict(self) | {"input_size": list(self.input_size)}


def cost_of(config: ModelConfig, input_size: Shape | None = None) -> Cost:
    """Count on the meta device: no weights, no files, no memory, however large the network.

    Args:
        config: The network.
        input_size: Another size than the configuration's.

    Raises:
        ValueError: The size is not a multiple of the patch size.
    """
    if input_size is not None:
        config = replace(config, input_size=input_size)
    model = build(config, meta=True).eval()
    image = torch.empty((1, config.in_channels, *config.input_size), device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    i, j, k = config.token_grid
    return Cost(
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        frozen_parameters=sum(p.numel() for p in model.parameters() if not p.requires_grad),
        flops=int(counter.get_total_flops()),
        input_size=config.input_size,
        tokens=i * j * k,
    )
