"""Tiny checkpoints of every family, made by the full `transformers` models."""

from __future__ import annotations

from typing import Any

import torch

from medvisionllama.language.families import FAMILIES

FAMILY_NAMES = tuple(FAMILIES)
N_LAYERS = 3
_DECODER = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "attention_dropout": 0.3,  # so that dropout would show if it came back on
}
_NUMBERS: dict[str, dict[str, Any]] = {
    "llama": _DECODER,
    "mistral": _DECODER,
    "qwen2": _DECODER,
    # A small cap and large weights, so that soft-capping matters.
    "gemma2": _DECODER | {"head_dim": 16, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0},
    "biogpt": {k: v for k, v in _DECODER.items() if k not in ("num_key_value_heads", "attention_dropout")},
    "bert": {k: v for k, v in _DECODER.items() if k not in ("num_key_value_heads", "attention_dropout")},
}


def full_model(family_name: str, *, headless: bool = False) -> Any:
    """A tiny full model with weights large enough that every part of it matters."""
    import transformers

    stem = FAMILIES[family_name].class_stem
    config = getattr(transformers, f"{stem}Config")(**_NUMBERS[family_name])
    kind = "Model" if headless else "ForMaskedLM" if family_name == "bert" else "ForCausalLM"
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        model = getattr(transformers, stem + kind)._from_config(config, attn_implementation="eager").eval()
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn(parameter.shape)
    return model
