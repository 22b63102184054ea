"""A middle stage says in one place which adapters its block has, and contradicts itself nowhere."""

from __future__ import annotations

import pytest

from medvisionllama.errors import InputError
from medvisionllama.language.block import BlockConfig
from medvisionllama.language.building import meta_block
from medvisionllama.models.middle import MiddleConfig
from medvisionllama.models.zoo import MODELS


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"kind": "bogus"}, "unknown kind"),
        ({"lora": "bogus"}, "unknown lora"),
        ({"residual": "bogus"}, "unknown residual"),
        ({"lora": "none", "block": BlockConfig(lora_rank=4)}, "in one place"),
        ({"lora": "both", "block": BlockConfig(lora_rank=4, lora_alpha=2.0)}, "in one place"),
        ({"lora": "mappers", "block": BlockConfig(lora_rank=8)}, "in one place"),
        ({"lora": "none", "block": BlockConfig(trained=True)}, "another kind"),
        ({"lora": "none", "alpha": 2.0}, "alpha says nothing"),
        ({"lora": "none", "lora_targets": ("query",)}, "lora_targets says nothing"),
        ({"kind": "identity", "lora_targets": ("query",)}, "lora_targets says nothing"),
        ({"lora": "block", "train_mapper_base": True}, "train_mapper_base says nothing"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        MiddleConfig(**fields)  # type: ignore[arg-type]


def test_targets_reach_the_block() -> None:
    config = MiddleConfig(rank=2, alpha=1.0, lora_targets=["key"])  # type: ignore[arg-type]
    block = meta_block(config.block_config())
    assert {name.split(".")[-4] for name, p in block.named_parameters() if p.requires_grad} == {"key"}


def test_without_adapters_the_block_has_none() -> None:
    for lora in ("none", "mappers"):
        assert MiddleConfig(lora=lora).block_config().lora_rank == 0  # type: ignore[arg-type]


def test_every_named_model_stands() -> None:
    for config in MODELS.values():
        config.middle.block_config()
