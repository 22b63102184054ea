"""Every network that can be trained: ours and its rivals, built alike from their configurations."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch

from medvisionllama.models.medvisionllama import MedVisionLlama, ModelConfig, build
from medvisionllama.models.peers.dynunet import DynUNet, DynUNetConfig

NetworkConfig = ModelConfig | DynUNetConfig
Network = MedVisionLlama | DynUNet


def build_network(
    config: NetworkConfig, *, seed: int = 0, meta: bool = False, cache: Path | None = None, offline: bool = False
) -> Network:
    """Build a network from its configuration; see :func:`~medvisionllama.models.medvisionllama.build`.

    Raises:
        InputError: A language block cannot be found or loaded, or the package a rival comes with is not installed.
    """
    if isinstance(config, ModelConfig):
        return build(config, seed=seed, meta=meta, cache=cache, offline=offline)
    with torch.random.fork_rng(devices=[]), torch.device("meta" if meta else "cpu"):
        torch.default_generator.manual_seed(zlib.crc32(f"{seed}/peer".encode()))
        return DynUNet(config)
