"""Autocast, asked about and switched off.

A backward pass written by hand computes in the number formats of what the forward pass kept. Where autocast is on only
when the gradients are asked for, it would choose others for some of the products and not for the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def is_autocast(device: torch.device) -> bool:
    """Whether autocast chooses number formats on this device: never on kinds it does not know, such as meta."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def without_autocast(backward: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """Let the backward pass of an autograd function, called with its context and gradients, keep to its own formats."""

    @wraps(backward)
    def plainly(*given: _Given.args, **named: _Given.kwargs) -> _Result:
        gradient = given[1]
        if not (isinstance(gradient, Tensor) and is_autocast(gradient.device)):
            return backward(*given, **named)
        with torch.autocast(gradient.device.type, enabled=False):
            return backward(*given, **named)

    return plainly
