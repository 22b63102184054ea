"""What a network costs: parameters, operations and memory, all counted. Nothing is estimated, nothing computed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from medvisionllama.models.attention import Shape
from medvisionllama.models.medvisionllama import ModelConfig
from medvisionllama.models.network import NetworkConfig, build_network


@dataclass(frozen=True)
class ForwardCost:
    """The cost of one forward pass over one volume.

    Attributes:
        trainable_parameters: Numbers that training changes.
        frozen_parameters: Numbers it does not: the block's, and the LoRA mappers' random start.
        flops: Floating-point operations of all products and convolutions; a multiplication and its addition are two.
        weight_bytes: What the parameters take in memory, each in its own number format.
        input_size: Voxels along I, J, K.
        tokens: How many image tokens pass the middle stage; 0 for networks without one.
    """

    trainable_parameters: int
    frozen_parameters: int
    flops: int
    weight_bytes: int
    input_size: Shape
    tokens: int


@dataclass(frozen=True)
class Cost(ForwardCost):
    """The cost of one forward pass, and of going backward from it.

    Attributes:
        kept_bytes: What a training step keeps of one volume for going backward, in float32 on a CPU. Beside it stand
            the weights, and for each trained one its gradient and the optimiser's numbers.
    """

    kept_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The form of `models show --json`."""
        return asdict(self) | {"input_size": list(self.input_size)}


def cost_of(config: NetworkConfig, input_size: Shape | None = None, *, cache: Path | None = None) -> Cost:
    """Count on the meta device: no weights, no files, no memory, however large the network.

    Args:
        config: The network.
        input_size: Another size than the configuration's.
        cache: Where fetched blocks lie; None for the default place. Of a model outside the catalog it tells the shape.

    Raises:
        ValueError: The size is not a multiple of the patch size.
        InputError: The shape of the language model is not known on this machine.
    """
    model, image, config = _on_meta(config, input_size, cache)
    forward = _forward_cost(model, image, config)
    return Cost(**vars(forward), kept_bytes=_kept_bytes(model, image))


def forward_cost_of(
    config: NetworkConfig, input_size: Shape | None = None, *, cache: Path | None = None
) -> ForwardCost:
    """:func:`cost_of` without what training keeps, which takes most of its time.

    Args:
        config: As :func:`cost_of` takes it.
        input_size: The same.
        cache: The same.

    Raises:
        ValueError: As of :func:`cost_of`.
        InputError: The same.
    """
    return _forward_cost(*_on_meta(config, input_size, cache))


@dataclass(frozen=True)
class Kept:
    """What a training step on a CPU keeps for going backward, beside the weights themselves.

    Attributes:
        each_volume: Bytes for each volume of the batch.
        once: Bytes however many there are: weights rounded to bfloat16.
    """

    each_volume: int
    once: int


def kept_of(
    config: NetworkConfig, input_size: Shape | None = None, *, half_precision: bool = False, cache: Path | None = None
) -> Kept:
    """Count what a training step keeps.

    Args:
        config: As :func:`cost_of` takes it.
        input_size: Likewise.
        half_precision: Whether arithmetic is bfloat16, by autocast. A GPU keeps less of up to 1,024 tokens, whose
            attention there goes by the fused kernel (`language.fused_or_plain`).
        cache: As of :func:`cost_of`.

    Raises:
        ValueError: As of :func:`cost_of`.
        InputError: The same.
    """
    model, image, _ = _on_meta(config, input_size, cache)
    if not half_precision:
        return Kept(_kept_bytes(model, image), 0)
    with torch.autocast("cpu", torch.bfloat16):
        one, two = (_kept_bytes(model, image.expand(volumes, -1, -1, -1, -1)) for volumes in (1, 2))
    return Kept(two - one, 2 * one - two)


def _on_meta(
    config: NetworkConfig, input_size: Shape | None, cache: Path | None
) -> tuple[nn.Module, Tensor, NetworkConfig]:
    """The network and an image ``(1,M,I,J,K)``, both without numbers, and the configuration they follow."""
    if input_size is not None:
        config = replace(config, input_size=input_size)
    model = build_network(config, meta=True, cache=cache).eval()
    return model, torch.empty((1, config.in_channels, *config.input_size), device="meta"), config


def _forward_cost(model: nn.Module, image: Tensor, config: NetworkConfig) -> ForwardCost:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    i, j, k = config.token_grid if isinstance(config, ModelConfig) else (0, 0, 0)
    return ForwardCost(
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        frozen_parameters=sum(p.numel() for p in model.parameters() if not p.requires_grad),
        flops=int(counter.get_total_flops()),
        weight_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        input_size=config.input_size,
        tokens=i * j * k,
    )


def _kept_bytes(model: nn.Module, image_on_meta: Tensor) -> int:
    """Every tensor that autograd saves in one forward pass, parameters aside, counted once.

    Fake tensors take the kernels that a CPU would, but hold nothing; on the meta device attention would be counted with
    N x N weights even where no device keeps them.
    """
    model.train()
    with FakeTensorMode():
        parameters = {name: _on_cpu(p) for name, p in model.named_parameters()}
        buffers = {name: _on_cpu(b) for name, b in model.named_buffers()}
        known = {tensor.untyped_storage()._cdata for tensor in parameters.values()}
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            left = functional_call(model, parameters | buffers, (_on_cpu(image_on_meta),))
        del left
        return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in known)


def _on_cpu(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", requires_grad=tensor.requires_grad)
