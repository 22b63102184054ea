"""How much memory a training needs, estimated from what its network keeps; nothing is computed, no memory taken."""

from __future__ import annotations

import math
from dataclasses import replace

from medvisionllama.models.attention import Shape
from medvisionllama.models.costs import forward_cost_of, kept_of
from medvisionllama.models.medvisionllama import ModelConfig
from medvisionllama.models.network import NetworkConfig
from medvisionllama.models.peers.dynunet import DynUNetConfig

GB = 1e9
# Gradient and AdamW's two moments beside each trained weight, all float32.
COPIES_OF_TRAINED = 3
# Float32 maps of all output channels that stand at once in the loss: logits, probabilities, masks, two gradients.
LOSS_MAPS = 5
# Of the image: as drawn, bent, coloured, and the places it is looked up at (three numbers a voxel).
IMAGE_MAPS = 6


def training_memory_gb(config: NetworkConfig, window: Shape, batch_size: int, *, half_precision: bool) -> float:
    """Gigabytes (1e9 bytes) that a training step takes of the device's memory, about.

    ``weights + 3 x 4 bytes x trained weights + batch x (kept for going backward + maps of the loss and the image)``.
    What is kept is counted (:func:`~medvisionllama.models.costs.kept_of`); convolutions' work space and
    the allocator's gaps are not in it, so leave a fifth of a GPU free.

    Args:
        config: The network.
        window: Voxels along I, J, K.
        batch_size: ``B``.
        half_precision: Whether arithmetic is bfloat16.
    """
    if isinstance(config, ModelConfig) and window == config.patch_size:
        window = (2 * window[0], window[1], window[2])  # one token alone has nothing that batch norm could count by
    cost = forward_cost_of(config, window)
    kept = kept_of(config, window, half_precision=half_precision)
    voxels = math.prod(window)
    outputs = 1
    if isinstance(config, DynUNetConfig) and config.deep_supervision:
        outputs = replace(config, input_size=window).full_size_outputs
    maps = 4 * voxels * (LOSS_MAPS * outputs * config.out_channels + IMAGE_MAPS * config.in_channels)
    weights = cost.weight_bytes + COPIES_OF_TRAINED * 4 * cost.trainable_parameters
    return (weights + kept.once + batch_size * (kept.each_volume + maps)) / GB
