"""A moving average of the weights while they train, often better than the last of them (Polyak and Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from medvisionllama.checkpoint import model_tensors, put_model_tensors


class WeightAverage:
    """An exponential moving average of all that a model's file holds, running statistics included.

    After each step ``average += (1 - d) (weights - average)``. The first steps forget faster, ``d = min(decay, (1 + n)
    / (10 + n))`` after ``n`` steps (as TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``), or a short
    training would end near its random start. What does not move is averaged to itself, bit for bit.

    Args:
        model: Whose weights; read at every update.
        decay: Below 1; the nearer, the longer the memory (about ``1 / (1 - decay)`` steps).
        left_out: Names of ``state_dict`` that no file holds.
    """

    def __init__(self, model: nn.Module, decay: float, left_out: Iterable[str] = ()) -> None:
        self.model = model
        self.decay = decay
        self.left_out = set(left_out)
        # In float32: a half-precision average would not notice a thousandth of a small change.
        self.tensors = {name: _summable(tensor).clone() for name, tensor in self._weights().items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take the weights in after ``steps`` steps in all."""
        share = 1 - min(self.decay, (1 + steps) / (10 + steps))
        for name, tensor in self._weights().items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(_summable(tensor), share)
            else:
                self.tensors[name].copy_(tensor)  # a count: half of one means nothing

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from an earlier average."""
        self.tensors = {name: tensors[name].to(tensor) for name, tensor in self.tensors.items()}

    @contextmanager
    def in_the_weights_place(self) -> Iterator[None]:
        """For a while the model's weights are the average; afterwards they are what they were, bit for bit."""
        before = {name: tensor.clone() for name, tensor in self._weights().items()}
        put_model_tensors(self.model, self.tensors, self.left_out)
        try:
            yield
        finally:
            put_model_tensors(self.model, before, self.left_out)

    def _weights(self) -> dict[str, Tensor]:
        return model_tensors(self.model, self.left_out)


def _summable(tensor: Tensor) -> Tensor:
    return tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
