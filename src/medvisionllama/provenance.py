"""Where a run came from: machine, versions, and the network as it was built."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medvisionllama.models.network import Network


def environment(device: torch.device, command: Sequence[str]) -> dict[str, Any]:
    """Versions, hardware and date: what a reader needs to judge a number."""
    on_gpu = device.type == "cuda"
    packages = ("medvisionllama", "torch", "transformers", "peft", "safetensors", "numpy", "scipy", "nibabel")
    return {
        "command": shlex.join(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "packages": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name; `platform` knows only its architecture on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def parameters(module: nn.Module) -> dict[str, int]:
    """How many numbers a module trains, and how many it holds frozen."""
    return {
        "trainable": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "frozen": sum(p.numel() for p in module.parameters() if not p.requires_grad),
    }


def stages(model: Network) -> list[dict[str, Any]]:
    """Each stage's name, output shape for one volume of the planned size, and parameters, in the order of the flow."""
    device = next(model.parameters()).device
    image = torch.zeros((1, model.config.in_channels, *model.config.input_size), device=device)
    found: list[dict[str, Any]] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def seen(module: nn.Module, inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            found.append({"name": name, "shape": list(tensor.shape)} | parameters(module))

        return seen

    handles = [part.register_forward_hook(watch(name)) for name, part in model.parts().items()]
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            model.forward(image)  # not model(image): a compiled network would not come past the hooks
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return found
