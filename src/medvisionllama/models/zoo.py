"""Every network by name. A name is a value of :class:`ModelConfig`, never a class of its own (SPEC 2)."""

from __future__ import annotations

from dataclasses import replace

from medvisionllama.errors import InputError
from medvisionllama.language.block import BlockConfig
from medvisionllama.models.medvisionllama import ModelConfig
from medvisionllama.models.middle import MiddleConfig

_V2 = ModelConfig()
_WITHOUT = MiddleConfig(kind="none")
# Ours, for users. A CPU pays for width and depth; skips and the stem are what carries the Dice (docs/findings.md).
_U = ModelConfig(stem="convolutions", decoder="ushape", width=128, depth=2, heads=4, dropout=0.1, final_norm=True)

MODELS: dict[str, ModelConfig] = {
    "vit-baseline": replace(_V2, middle=_WITHOUT),
    "medvisionllama": _V2,
    "medvisionllama-linear": replace(_V2, middle=MiddleConfig(lora="none")),
    "as-published-code": replace(_V2, place="before-encoder", middle=MiddleConfig(lora="mappers", rank=4, alpha=1.0)),
    "vit-u": replace(_U, middle=_WITHOUT),
    "medvisionllama-u": _U,
}

DESCRIPTIONS: dict[str, str] = {
    "vit-baseline": "the papers' ViT segmentation network without a block (ViT-Baseline)",
    "medvisionllama": "v2: ViT, LoRA mappers, frozen language block with LoRA, linear decoder",
    "medvisionllama-linear": "v2 Table 5: trainable linear mappers, no LoRA",
    "as-published-code": "the block before the encoder, LoRA of rank 4 in the mappers only",
    "vit-u": "ours, for users: convolutional stem and skips, no block",
    "medvisionllama-u": "ours, for users: convolutional stem and skips around the frozen language block",
}


def named(name: str) -> ModelConfig:
    """The configuration called ``name``.

    Raises:
        InputError: There is none of that name.
    """
    if name not in MODELS:
        raise InputError(f"no model is called {name!r}", expected=", ".join(MODELS), mend="Choose one of these.")
    return MODELS[name]


def with_block(config: ModelConfig, source: str) -> ModelConfig:
    """The same network around another language model's block (a catalog name, hub id or folder)."""
    block: BlockConfig = replace(config.middle.block, source=source)
    return replace(config, middle=replace(config.middle, block=block))
