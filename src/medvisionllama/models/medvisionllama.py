"""The papers' figure as code: stem, encoder, middle stage, decoder, each handed in.

Axes: ``B`` batch, ``M`` modalities, ``C`` output channels, ``I J K`` voxels, ``i j k`` the token grid, ``N`` tokens,
``E`` encoder width, ``L`` language-model width.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from medvisionllama.language.block import BlockConfig, LanguageBlock
from medvisionllama.language.building import load_block, meta_block
from medvisionllama.models.attention import AttentionKind, Shape
from medvisionllama.models.decoder import LinearDecoder, UpConvDecoder, UShapeDecoder
from medvisionllama.models.fusion import MultiScaleFusion
from medvisionllama.models.middle import Middle, MiddleConfig, large_mlp, small_mlp
from medvisionllama.models.vit import ConvolutionalStem, Encoder, Norm, PatchEmbedding, PositionEmbedding


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
        fusion: Odd kernel edges of the multi-scale fusion in front of the encoder, (3, 5, 7) in v1; empty for none.
        attention: Of the encoder blocks; see :func:`~medvisionllama.models.attention.build_attention`.
        depth: Encoder blocks.
        heads: Attention heads of an encoder block.
        mlp_ratio: Width of an encoder MLP over ``width``.
        dropout: In the encoder.
        final_norm: A LayerNorm after the encoder.
        place: Where the middle stage stands (v2 after the encoder; the published code before it).
        middle: The middle stage.
        decoder: ``linear``, ``upconv`` (v1) or ``ushape``.
        pad_input: Whether images that are no multiple of the patch size are padded with zeros behind their last voxels,
            and the logits cut back, instead of being refused.
        recompute: Gradient checkpointing: encoder blocks and the language block keep nothing for going backward but
            compute their parts again. Less memory, more time, the same result.
        deep_supervision: Whether the ``ushape`` decoder gives logits at its coarser resolutions too while training; set
            by the recipe.
        compiled: ``torch.compile`` the whole network: faster after a minute of compiling, the same to rounding.
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
    decoder: Literal["linear", "upconv", "ushape"] = "linear"
    fusion: tuple[int, ...] = ()
    attention: AttentionKind = "self"
    pad_input: bool = False
    recompute: bool = False
    compiled: bool = False
    deep_supervision: bool = False

    def __post_init__(self) -> None:
        # Configurations arrive from YAML and JSON too, where a tuple is a list.
        for name in ("fusion", "input_size", "patch_size", "stem_widths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "stem_strides", tuple(tuple(stride) for stride in self.stem_strides))
        counts = (self.in_channels, self.out_channels, self.width, self.heads, self.mlp_ratio, *self.patch_size)
        if min(*counts, *self.input_size) < 1 or self.depth < 0:
            raise ValueError("channels, sizes, width, heads and mlp_ratio are at least 1, and depth is at least 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout} is not within 0 and 1")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        if any(kernel < 1 or kernel % 2 == 0 for kernel in self.fusion):
            raise ValueError(f"fusion kernels {self.fusion} are not all odd: an even one has no middle")
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
        if self.deep_supervision and self.decoder != "ushape":
            raise ValueError(f"deep supervision needs the ushape decoder: {self.decoder} has no coarser maps to judge")
        if self.deep_supervision and self.padded(self.input_size) != self.input_size:
            raise ValueError(f"deep supervision needs whole patches: {self.input_size} would be padded")
        if not self.pad_input and self.padded(self.input_size) != self.input_size:
            raise ValueError(
                f"input_size {self.input_size} is not a multiple of patch_size {self.patch_size}: "
                f"set pad_input, or use {self.padded(self.input_size)}"
            )

    @property
    def token_grid(self) -> Shape:
        """Tokens along I, J, K for ``input_size``, padded where it must be."""
        i, j, k = (-(-size // patch) for size, patch in zip(self.input_size, self.patch_size, strict=True))
        return (i, j, k)

    def padded(self, size: Sequence[int]) -> Shape:
        """The next larger size of whole patches."""
        i, j, k = (-(-edge // patch) * patch for edge, patch in zip(size, self.patch_size, strict=True))
        return (i, j, k)


class MedVisionLlama(nn.Module):
    """Voxels to tokens, through the encoder and the middle stage, back to logits.

    Args:
        stem: Image ``(B,M,I,J,K)`` to tokens ``(B,i,j,k,E)`` and skips.
        position: Token grid to ``(1,N,E)``.
        fusion: ``(B,N,E)`` and the token grid to ``(B,N,E)``, or None.
        encoder: ``(B,N,E)`` and the token grid to ``(B,N,E)``.
        middle: ``(B,N,E)`` to ``(B,N,E)``, or None.
        decoder: Tokens ``(B,i,j,k,E)`` and skips to logits ``(B,C,I,J,K)``.
        config: What it was built from.
    """

    def __init__(
        self,
        stem: nn.Module,
        position: PositionEmbedding,
        fusion: MultiScaleFusion | None,
        encoder: Encoder,
        middle: Middle | None,
        decoder: nn.Module,
        config: ModelConfig,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.position = position
        self.fusion = fusion
        self.encoder = encoder
        self.middle = middle
        self.decoder = decoder
        self.config = config

    def forward(self, image_BMIJK: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits ``(B,C,I,J,K)`` of an image whose sizes are multiples of the patch size, or any with ``pad_input``.

        While training with deep supervision a tuple, finest first.

        Raises:
            ValueError: The image has another number of channels, or its size is no multiple of the patch size.
        """
        I, J, K = image_BMIJK.shape[2:]  # noqa: E741
        tokens_BijkE, skips = self.stem(self._whole_patches(image_BMIJK))
        grid = (tokens_BijkE.shape[1], tokens_BijkE.shape[2], tokens_BijkE.shape[3])
        tokens_BNE = tokens_BijkE.flatten(1, 3) + self.position(grid)
        if self.fusion is not None:
            tokens_BNE = self.fusion(tokens_BNE, grid)
        if self.middle is None:
            tokens_BNE = self.encoder(tokens_BNE, grid)
        elif self.config.place == "after-encoder":
            tokens_BNE = self.middle(self.encoder(tokens_BNE, grid))
        else:
            tokens_BNE = self.encoder(self.middle(tokens_BNE), grid)
        logits_BCIJK: Tensor | tuple[Tensor, ...] = self.decoder(tokens_BNE.unflatten(1, grid), skips)
        if isinstance(logits_BCIJK, tuple):
            return logits_BCIJK
        return logits_BCIJK[..., :I, :J, :K] if self.config.pad_input else logits_BCIJK

    def _whole_patches(self, image_BMIJK: Tensor) -> Tensor:
        """The image, padded where the configuration says so."""
        if image_BMIJK.ndim != 5 or image_BMIJK.shape[1] != self.config.in_channels:
            raise ValueError(f"expected (B,{self.config.in_channels},I,J,K), got {tuple(image_BMIJK.shape)}")
        size = tuple(image_BMIJK.shape[2:])
        padded = self.config.padded(size)
        if size == padded:
            return image_BMIJK
        if not self.config.pad_input:
            raise ValueError(f"{size} is no multiple of {self.config.patch_size}: pad to {padded}")
        missing = [whole - edge for whole, edge in zip(padded, size, strict=True)]
        return pad(image_BMIJK, [0, missing[2], 0, missing[1], 0, missing[0]])

    @property
    def block(self) -> LanguageBlock | None:
        """The language block, where there is one."""
        block = self.middle.block if self.middle is not None else None
        return block if isinstance(block, LanguageBlock) else None

    def parts(self) -> dict[str, nn.Module]:
        """Its stages in the order of the flow, the middle stage's parts one by one; every parameter is in one."""
        middle: dict[str, nn.Module | None] = {}
        if self.middle is not None:
            middle = {
                "mapper in": self.middle.mapper_in,
                "norm in": self.middle.norm_in if self.config.middle.norm_in else None,
                "block": self.middle.block,
                "mapper out": self.middle.mapper_out,
            }
        encoder = {"encoder": self.encoder}
        ordered = encoder | middle if self.config.place == "after-encoder" else middle | encoder
        first = {"stem": self.stem, "position": self.position, "fusion": self.fusion}
        return {name: part for name, part in (first | ordered | {"decoder": self.decoder}).items() if part is not None}

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
    block_config = config.middle.block_config()
    with torch.device("meta" if meta else "cpu"):
        with _seeded(seed, "block"):
            if config.middle.kind in ("language", "trained"):
                if block is None:
                    block = (
                        meta_block(block_config, cache=cache)
                        if meta
                        else load_block(block_config, cache=cache, offline=offline)
                    )
                filling = _Filling(block, block.width)
            else:
                filling = _without_language(config.middle, block_config, cache)
        with _seeded(seed, "stem"):
            stem = _stem(config)
            position = PositionEmbedding(config.token_grid, config.width)
        with _seeded(seed, "fusion"):
            fusion = MultiScaleFusion(config.width, config.fusion) if config.fusion else None
        with _seeded(seed, "encoder"):
            encoder = Encoder(
                config.width,
                config.depth,
                config.heads,
                config.mlp_ratio,
                config.dropout,
                config.final_norm,
                config.attention,
                config.recompute,
            )
        middle = None
        with _seeded(seed, "middle"):
            if config.middle.kind != "none":
                middle = Middle(config.width, filling.width, filling.module, config.middle, config.recompute)
        with _seeded(seed, "decoder"):
            decoder = _decoder(config)
    model = MedVisionLlama(stem, position, fusion, encoder, middle, decoder, config)
    if config.compiled and not meta:
        # Dropout drawn as without compiling; and in place, so that names in `state_dict` stay.
        model.compile(options={"fallback_random": True})
    return model


@dataclass(frozen=True)
class _Filling:
    """What stands between the mappers, and its width ``L``."""

    module: nn.Module | None
    width: int


def _without_language(middle: MiddleConfig, block_config: BlockConfig, cache: Path | None) -> _Filling:
    """What takes the block's place; only the block's shape is looked at."""
    if middle.kind == "none":
        return _Filling(None, 0)
    replaced = meta_block(block_config, cache=cache)
    if middle.kind == "mlp":
        return _Filling(small_mlp(replaced.width), replaced.width)
    if middle.kind == "large-mlp":
        parameters = sum(p.numel() for p in replaced.parameters())
        return _Filling(large_mlp(replaced.width, parameters, middle.mlp_width), replaced.width)
    return _Filling(None, replaced.width)


def _stem(config: ModelConfig) -> nn.Module:
    if config.stem == "patches":
        return PatchEmbedding(config.in_channels, config.patch_size, config.width)
    return ConvolutionalStem(config.in_channels, _stem_widths(config), config.stem_strides, config.norm)


def _decoder(config: ModelConfig) -> nn.Module:
    if config.decoder == "linear":
        return LinearDecoder(config.width, config.patch_size, config.out_channels)
    if config.decoder == "upconv":
        return UpConvDecoder(config.width, config.patch_size, config.out_channels, config.norm)
    return UShapeDecoder(
        _stem_widths(config), config.stem_strides, config.out_channels, config.norm, config.deep_supervision
    )


def _stem_widths(config: ModelConfig) -> tuple[int, ...]:
    return (*config.stem_widths, config.width)


@contextmanager
def _seeded(seed: int, part: str) -> Iterator[None]:
    """Draw from the CPU generator as ``seed`` and ``part`` say, and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(zlib.crc32(f"{seed}/{part}".encode()))  # no GPU's, which nobody restores
        yield
