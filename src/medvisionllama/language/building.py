"""Blocks as configurations ask for them: layers of a language model, with its weights or with weights drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medvisionllama.errors import InputError
from medvisionllama.language.attention import register
from medvisionllama.language.block import DTYPES, BlockConfig, BlockIdentity, LanguageBlock, is_adapter
from medvisionllama.language.families import config_faults_told, family_of
from medvisionllama.language.fetch import Located, locate, model_numbers
from medvisionllama.language.gated import GatedMLP
from medvisionllama.language.layout import check_shapes, resolve_layers
from medvisionllama.language.lean import FrozenRMSNorm, PositionFreeAttention
from medvisionllama.language.source import Source, find_source

# Of a model's configuration: what the layers compute with, beside their tensors and without positions.
_SHAPING = (
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "rms_norm_eps",
    "layer_norm_eps",
    "attn_logit_softcapping",
    "query_pre_attn_scalar",
)
_READ = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def load_block(config: BlockConfig, *, cache: Path | None = None, offline: bool = False) -> LanguageBlock:
    """Build the block a configuration asks for, with its weights.

    Adapters, if any, start as the identity: their first matrix is drawn from torch's global generator
    (seed it before), their second is zero. They are float32 whatever the base.

    Args:
        config: What to build.
        cache: Where fetched layers are kept; None takes the place shared by all runs of this user.
        offline: Never touch the network; what is not at hand is refused.

    Returns:
        The block on the CPU: frozen except for adapters, or wholly trainable where `config.trained`.

    Raises:
        InputError: No such model, layer or LoRA target, or a checkpoint that is damaged or does not fit.
    """
    source = find_source(config.source, config.revision)
    numbers = model_numbers(source, cache=cache) if config.init == "random" else None
    if numbers is not None:
        block = _skeleton(config, numbers, source)
        _fill(block, _draw_as_family(block, config.seed), config)
    else:
        located = _located(source, config, cache=cache, offline=offline)
        block = _skeleton(config, located.numbers, source)
        _fill(block, _tensors(block, located, config), config)
        block.identity = replace(block.identity, revision=located.revision)
    block.identity = replace(block.identity, sha256=block.base_sha256())
    _add_adapters(block, config)
    return block


def meta_block(config: BlockConfig, *, cache: Path | None = None) -> LanguageBlock:
    """The block without weights, on torch's meta device: for counting parameters and operations.

    Needs no file for a model of the catalog, and config.json alone for a folder. Of a hub id outside the
    catalog some layer must have been fetched.

    Raises:
        InputError: No such model or layer, or a hub id whose shape is not known here.
    """
    source = find_source(config.source, config.revision)
    numbers = model_numbers(source, cache=cache)
    if numbers is None:
        raise InputError(
            f"the shape of {config.source} is not known on this machine",
            mend=f"Run `medvisionllama blocks fetch {config.source}` once.",
        )
    block = _skeleton(config, numbers, source)
    _add_adapters(block, config)
    return block


def _located(source: Source, config: BlockConfig, *, cache: Path | None, offline: bool) -> Located:
    """The checkpoints of the wanted layers, fetched unless they are at hand."""
    hub = None
    if not offline and source.folder is None:
        from medvisionllama.language.hub import Hub

        hub = Hub()
    return locate(source, config.layers, cache=cache, hub=hub)


def _skeleton(config: BlockConfig, numbers: Mapping[str, Any], source: Source) -> LanguageBlock:
    """The block without adapters, on the meta device."""
    register()
    family = family_of(numbers, source=source.given)
    indices = resolve_layers(config.layers, int(numbers["num_hidden_layers"]), source=source.given)
    with config_faults_told(source.given), torch.device("meta"):
        model_config = family.model_config(numbers)
        layers = nn.ModuleList(family.build_layer(model_config, index) for index in indices)
        norm = family.build_final_norm(model_config) if config.final_norm else None
    if family.rotary:
        norm = _made_lean(layers, norm, family.activation(model_config), frozen=not config.trained)
    identity = BlockIdentity(
        id=source.identity,
        revision=None,
        family=family.name,
        layers=indices,
        init=config.init,
        seed=config.seed,
        dtype=config.dtype,
        final_norm=norm is not None,
        sha256="",
        numbers={name: getattr(model_config, name) for name in _SHAPING if hasattr(model_config, name)},
    )
    block = LanguageBlock(
        layers, norm, family=family, model_config=model_config, identity=identity, trained=config.trained
    )
    return block.to(DTYPES[config.dtype])


def _made_lean(layers: nn.ModuleList, norm: nn.Module | None, activation: str, *, frozen: bool) -> nn.Module | None:
    """Leave positions out of Llama-like layers, and spare copies in them; returns the final norm."""
    for layer in layers:
        layer.self_attn = PositionFreeAttention(layer.self_attn)  # type: ignore[arg-type]
        layer.mlp = GatedMLP(layer.mlp, activation)  # type: ignore[arg-type]
        for name, part in list(layer.named_children()) if frozen else []:
            if type(part).__name__.endswith("RMSNorm"):
                setattr(layer, name, FrozenRMSNorm(part))
    return FrozenRMSNorm(norm, keeps_result=True) if norm is not None and frozen else norm


def _fill(block: LanguageBlock, tensors: Mapping[str, Tensor], config: BlockConfig) -> None:
    """Give the meta block its weights, in its own number format."""
    dtype = DTYPES[config.dtype]
    # A copy where training writes: tensors may be backed by the checkpoint's file, mapped for reading.
    weights = {name: value.to(dtype, copy=config.trained) for name, value in tensors.items()}
    block.load_state_dict(weights, strict=True, assign=True)
    block.requires_grad_(config.trained)


def _tensors(block: LanguageBlock, located: Located, config: BlockConfig) -> dict[str, Tensor]:
    """The block's tensors from the checkpoint, or drawn after them, under the block's own names."""
    generator = torch.Generator().manual_seed(config.seed)
    tensors: dict[str, Tensor] = {}
    for position, index in enumerate(block.identity.layers):
        is_last = position == len(block.identity.layers) - 1
        checkpoint = located.layers[index]
        with_norm = is_last and block.norm is not None
        found = checkpoint.read(checkpoint.layer_names(block.family, index, final_norm=with_norm))
        for name, value in sorted(found.items()):
            ours = name.replace("layer.", f"layers.{position}.", 1) if name.startswith("layer.") else name
            tensors[ours] = value
    check_shapes({name: tuple(value.shape) for name, value in tensors.items()}, block, source=block.identity.id)
    if odd := [name for name, value in tensors.items() if value.dtype not in _READ]:
        raise InputError(
            f"{block.identity.id} stores {odd[0]} as {tensors[odd[0]].dtype}",
            expected="floating-point weights",
            mend="Choose a checkpoint that is not quantised.",
        )
    if config.init == "pretrained":
        return tensors
    if config.init == "random":
        return _draw_as_family(block, config.seed)
    redraw = _shuffled if config.init == "shuffled" else _drawn_alike
    return {name: redraw(value, generator) for name, value in tensors.items()}


def _shuffled(value: Tensor, generator: torch.Generator) -> Tensor:
    """The same entries in random order."""
    order = torch.randperm(value.numel(), generator=generator)
    return value.flatten()[order].view(value.shape)


def _drawn_alike(value: Tensor, generator: torch.Generator) -> Tensor:
    """A normal draw with the tensor's own mean and standard deviation."""
    exact = value.double()
    drawn = torch.randn(value.shape, generator=generator, dtype=torch.float32)
    return (drawn * exact.std(correction=0) + exact.mean()).float()


def _draw_as_family(block: LanguageBlock, seed: int) -> dict[str, Tensor]:
    """Weights drawn in float32 on the CPU by the family's own initialiser, under the block's own names."""
    family, config = block.family, block.model_config
    # The initialisers draw from torch's global generator: it is put back afterwards.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        drawn = nn.ModuleDict(
            {"layers": nn.ModuleList(family.build_layer(config, index) for index in block.identity.layers)}
        )
        if block.norm is not None and (norm := family.build_final_norm(config)) is not None:
            drawn["norm"] = norm
        family.initialise(drawn, config)
    return dict(drawn.state_dict())


def _add_adapters(block: LanguageBlock, config: BlockConfig) -> None:
    """Put LoRA adapters into the block's layers in place; nothing happens at rank 0."""
    if config.lora_rank == 0:
        return
    from peft import LoraConfig, inject_adapter_in_model

    linears = {name.rpartition(".")[2] for name, part in block.named_modules() if isinstance(part, nn.Linear)}
    targets = config.lora_targets or block.family.query_value
    if unknown := sorted(set(targets) - linears):
        raise InputError(
            f"the layers of {config.source} have no linear layer {', '.join(unknown)}",
            expected="some of " + ", ".join(sorted(linears)),
            mend="Correct lora_targets.",
        )
    alpha = config.lora_rank if config.lora_alpha is None else config.lora_alpha
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides by the rank, whatever number it is
        target_modules=list(targets),
        lora_dropout=0.0,
        bias="none",
    )
    inject_adapter_in_model(lora, block.layers)
    block.lora = lora
    for name, parameter in block.named_parameters():
        parameter.requires_grad = is_adapter(name)
        if is_adapter(name):
            # peft gives adapters the base's dtype; in bfloat16 small updates would be rounded away.
            parameter.data = parameter.data.float()
    block.train(block.training)
