"""The papers' figure as code: stem, encoder, middle stage, decoder, each handed in.

Axes: ``B`` batch, ``M`` modalities, ``C`` output channels, ``I J K`` voxels, ``i j k`` the token grid, ``N`` tokens,
``E`` encoder width, ``L`` language-model width.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from medvisionllama.language.block import LanguageBlock, load_block, meta_block
from medvisionllama.models.decoder import LinearDecoder, UShapeDecoder
from medvisionllama.models.middle import Middle, MiddleConfig
from medvisionllama.models.vit import ConvolutionalStem, Encoder, Norm, PatchEmbedding, PositionEmbedding, Shape


@dataclass(frozen=True)
class ModelConfig:
    """One network of the family; the defaults are ``medvisionllama`` of v2 at the papers' input size.

    Attributes:
        in_channels: ``M``.
        out_channels: ``C``: classes with background, or one per sigmoid target.
        input_size: Voxels along I, J, K the position embedding is learned for.
        stem: ``patches`` (linear patch embedding) or ``convolutions`` (strided, with skips; needs the ``ushape``
            decoder).
        patch_size: Voxels a token stands for; of the convolutional stem the product of its strides.
        stem_widths: Channels of the convolutional stem's stages before the last, which has ``width``.
        stem_strides: Strides of the convolutional stem's stages.
        norm: What normalises the convolutions.
        width: ``E``.
        depth: Encoder blocks.
        heads: Attention heads of an encoder block.
        mlp_ratio: Width of an encoder MLP over ``width``.
        dropout: In the encoder.
        final_norm: A LayerNorm after the encoder.
        place: Where the middle stage stands (v2 after the encoder; the published code before it).
        middle: The middle stage.
        decoder: ``linear`` or ``ushape``.
    """

    in_channels: int = 1
    out_channels: int = 1
    input_size: Shape = (128, 128, 128)
    stem: Literal["patches", "convolutions"] = "patches"
    patch_size: Shape = (8, 8, 8)
    stem_widths: tuple[int, ...] = (32, 64)
    stem_strides: tuple[Shape, ...] = ((2, 2, 2), (2, 2, 2), (2, 2, 2))
    norm: Norm = "batch"
    width: int = 64
    depth: int = 16
    heads: int = 4
    mlp_ratio: int = 4
    dropout: float = 0.2
    final_norm: bool = False
    place: Literal["after-encoder", "before-encoder"] = "after-encoder"
    middle: MiddleConfig = field(default_factory=MiddleConfig)
    decoder: Literal["linear", "ushape"] = "linear"

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        if (self.stem == "convolutions") != (self.decoder == "ushape"):
            raise ValueError("the convolutional stem and the ushape decoder need each other: skips join them")
        if self.stem == "convolutions":
            if len(self.stem_widths) + 1 != len(self.stem_strides):
                raise ValueError(
                    "stem_strides has one entry more than stem_widths: the last stage has `width` channels"
                )
            reduction = tuple(math.prod(axis) for axis in zip(*self.stem_strides, strict=True))
            if reduction != self.patch_size:
                raise ValueError(f"stem_strides reduce by {reduction}, but patch_size is {self.patch_size}")
        if any(size % patch for size, patch in zip(self.input_size, self.patch_size, strict=True)):
            raise ValueError(f"input_size {self.input_size} is not a multiple of patch_size {self.patch_size}")

    @property
    def token_grid(self) -> Shape:
        """Tokens along I, J, K for ``input_size``."""
        i, j, k = (size // patch for size, patch in zip(self.input_size, self.patch_size, strict=True))
        return (i, j, k)


class MedVisionLlama(nn.Module):
    """Voxels to tokens, through the encoder and the middle stage, back to logits.

    Args:
        stem: Image ``(B,M,I,J,K)`` to tokens ``(B,i,j,k,E)`` and skips.
        position: Token grid to ``(1,N,E)``.
        encoder: ``(B,N,E)`` to ``(B,N,E)``.
        middle: ``(B,N,E)`` to ``(B,N,E)``, or None.
        decoder: Tokens ``(B,i,j,k,E)`` and skips to logits ``(B,C,I,J,K)``.
        config: What it was built from.
    """

    def __init__(
        self,
        stem: nn.Module,
        position: PositionEmbedding,
        encoder: nn.Module,
        middle: Middle | None,
        decoder: nn.Module,
        config: ModelConfig,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.position = position
        self.encoder = encoder
        self.middle = middle
        self.decoder = decoder
        self.config = config

    def forward(self, image_BMIJK: Tensor) -> Tensor:
        """Logits ``(B,C,I,J,K)`` of an image whose sizes are multiples of the patch size.

        Raises:
            ValueError: The image has another number of channels, or its size is no multiple of the patch size.
        """
        self._check(image_BMIJK)
        tokens_BijkE, skips = self.stem(image_BMIJK)
        grid = tokens_BijkE.shape[1:4]
        tokens_BNE = tokens_BijkE.flatten(1, 3) + self.position(tuple(grid))
        if self.middle is None:
            tokens_BNE = self.encoder(tokens_BNE)
        elif self.config.place == "after-encoder":
            tokens_BNE = self.middle(self.encoder(tokens_BNE))
        else:
            tokens_BNE = self.encoder(self.middle(tokens_BNE))
        logits_BCIJK: Tensor = self.decoder(tokens_BNE.unflatten(1, grid), skips)
        return logits_BCIJK

    def _check(self, image_BMIJK: Tensor) -> None:
        patch = self.config.patch_size
        if image_BMIJK.ndim != 5 or image_BMIJK.shape[1] != self.config.in_channels:
            raise ValueError(f"expected (B,{self.config.in_channels},I,J,K), got {tuple(image_BMIJK.shape)}")
        if any(size % p for size, p in zip(image_BMIJK.shape[2:], patch, strict=True)):
            mended = tuple(-(-size // p) * p for size, p in zip(image_BMIJK.shape[2:], patch, strict=True))
            raise ValueError(f"{tuple(image_BMIJK.shape[2:])} is no multiple of {patch}: pad to {mended}")

    @property
    def block(self) -> LanguageBlock | None:
        """The language block, where there is one."""
        block = self.middle.block if self.middle is not None else None
        return block if isinstance(block, LanguageBlock) else None

    def left_out_of_files(self) -> set[str]:
        """Names in ``state_dict`` of the frozen block's tensors, which a run names by hash instead of holding."""
        if self.block is None:
            return set()
        return {f"middle.block.{name}" for name in self.block.base_state_names()}


def build(
    config: ModelConfig,
    *,
    seed: int = 0,
    block: LanguageBlock | None = None,
    meta: bool = False,
    cache: Path | None = None,
    offline: bool = False,
) -> MedVisionLlama:
    """Build a network from its configuration.

    Every part draws its start from a seed of its own, so that networks that differ in one part start alike in the
    others: a comparison of middle stages then differs in nothing else.

    Args:
        config: What to build.
        seed: Of everything drawn at random: the trained weights' start and the mappers' frozen one. (A random or
            shuffled block has its own seed in its own configuration.)
        block: A block already loaded; None to load the one ``config`` names.
        meta: On the meta device, without weights or files: for counting parameters and FLOPs.
        cache: Where fetched blocks lie; None for the default place.
        offline: Never ask a hub.

    Raises:
        InputError: The block cannot be found or loaded.
    """
    needs_block = config.middle.kind in ("language", "trained")
    block_config = config.middle.block_config()
    stem: nn.Module
    decoder: nn.Module
    with torch.device("meta" if meta else "cpu"):
        if needs_block and block is None:
            with _seeded(seed, "block"):
                block = meta_block(block_config) if meta else load_block(block_config, cache=cache, offline=offline)
        widths = (*config.stem_widths, config.width)
        with _seeded(seed, "stem"):
            if config.stem == "patches":
                stem = PatchEmbedding(config.in_channels, config.patch_size, config.width)
            else:
                stem = ConvolutionalStem(config.in_channels, widths, config.stem_strides, config.norm)
            position = PositionEmbedding(config.token_grid, config.width)
        with _seeded(seed, "encoder"):
            encoder = Encoder(
                config.width, config.depth, config.heads, config.mlp_ratio, config.dropout, config.final_norm
            )
        middle = None
        with _seeded(seed, "middle"):
            if config.middle.kind != "none":
                block_width = block.width if block is not None else meta_block(block_config).width
                middle = Middle(config.width, block_width, block, config.middle)
        with _seeded(seed, "decoder"):
            if config.decoder == "linear":
                decoder = LinearDecoder(config.width, config.patch_size, config.out_channels)
            else:
                decoder = UShapeDecoder(widths, config.stem_strides, config.out_channels, config.norm)
        return MedVisionLlama(stem, position, encoder, middle, decoder, config)


@contextmanager
def _seeded(seed: int, part: str) -> Iterator[None]:
    """Draw from the CPU generator as ``seed`` and ``part`` say, and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{seed}/{part}".encode()))
        yield
