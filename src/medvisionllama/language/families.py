"""The language-model families whose layers can stand alone, and how their checkpoints name them.

A family is data, not a class to inherit from: the layer itself is always the `transformers` one, so that
a lone layer can be compared with the full model's. A new family is one more entry of `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from medvisionllama.errors import InputError

if TYPE_CHECKING:
    from torch import nn

ATTENTION_NAME = "medvisionllama_bidirectional"


@dataclass(frozen=True)
class Family:
    """What tells one family's layer from another's."""

    name: str
    """The family's name, equal to `model_type` in a checkpoint's config.json."""
    class_stem: str
    """`Llama` of `LlamaDecoderLayer`; the classes live in `transformers.models.<name>`."""
    layer_class: str
    """The class of one transformer layer."""
    layer_prefixes: tuple[str, ...]
    """Where checkpoints keep layer `{i}`: first with the language-model head's prefix, then headless."""
    norm_prefixes: tuple[str, ...]
    """Where checkpoints keep the final norm, in the same order; empty for a family without one."""
    query_value: tuple[str, str]
    """The names of the query and value projections, the default targets of LoRA."""
    rotary: bool
    """Whether the layer expects rotary positions."""
    causal: bool
    """Whether the full model masks later tokens."""

    @property
    def has_final_norm(self) -> bool:
        """Whether the full model ends in a norm (BERT, whose layers are post-norm, does not)."""
        return bool(self.norm_prefixes)

    def modeling(self) -> Any:
        """The `transformers` module with this family's classes; its import takes seconds, so it waits."""
        return import_module(f"transformers.models.{self.name}.modeling_{self.name}")

    def model_config(self, numbers: Mapping[str, Any]) -> Any:
        """The `transformers` configuration object of a config.json's numbers, set to our own attention."""
        module = import_module(f"transformers.models.{self.name}.configuration_{self.name}")
        config = getattr(module, f"{self.class_stem}Config").from_dict(dict(numbers))
        config._attn_implementation = ATTENTION_NAME
        return config

    def activation(self, model_config: Any) -> str:
        """The name of the feed-forward part's activation (Gemma 2 keeps it in a field of its own)."""
        name: str = getattr(model_config, "hidden_activation", None) or model_config.hidden_act
        return name

    def build_layer(self, model_config: Any, index: int) -> nn.Module:
        """An untrained layer number `index`, on torch's current default device."""
        layer: nn.Module = getattr(self.modeling(), self.layer_class)(model_config, layer_idx=index)
        return layer

    def build_final_norm(self, model_config: Any) -> nn.Module | None:
        """The untrained norm the full model ends with, or None for a family without one."""
        if not self.has_final_norm:
            return None
        if self.name == "biogpt":
            from torch.nn import LayerNorm

            return LayerNorm(model_config.hidden_size)
        norm: nn.Module = getattr(self.modeling(), f"{self.class_stem}RMSNorm")(
            model_config.hidden_size, eps=model_config.rms_norm_eps
        )
        return norm

    def initialise(self, module: nn.Module, model_config: Any) -> None:
        """Draw `module`'s weights in place as the family's own models are drawn before training."""
        model = getattr(self.modeling(), f"{self.class_stem}PreTrainedModel")(model_config)
        for part in module.modules():
            model._init_weights(part)


def _decoder(name: str, class_stem: str) -> Family:
    """One of the families that share Llama's layout: pre-norm, rotary positions, RMS norms."""
    return Family(
        name=name,
        class_stem=class_stem,
        layer_class=f"{class_stem}DecoderLayer",
        layer_prefixes=("model.layers.{i}.", "layers.{i}."),
        norm_prefixes=("model.norm.", "norm."),
        query_value=("q_proj", "v_proj"),
        rotary=True,
        causal=True,
    )


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _decoder("llama", "Llama"),
        _decoder("mistral", "Mistral"),
        _decoder("qwen2", "Qwen2"),
        _decoder("gemma2", "Gemma2"),
        Family(
            name="biogpt",
            class_stem="BioGpt",
            layer_class="BioGptDecoderLayer",
            layer_prefixes=("biogpt.layers.{i}.", "layers.{i}."),
            norm_prefixes=("biogpt.layer_norm.", "layer_norm."),
            query_value=("q_proj", "v_proj"),
            rotary=False,
            causal=True,
        ),
        Family(
            name="bert",
            class_stem="Bert",
            layer_class="BertLayer",
            layer_prefixes=("bert.encoder.layer.{i}.", "encoder.layer.{i}."),
            norm_prefixes=(),
            query_value=("query", "value"),
            rotary=False,
            causal=False,
        ),
    )
}


def family_of(numbers: Mapping[str, Any], *, source: str) -> Family:
    """The family a config.json belongs to.

    Raises:
        InputError: Its `model_type` is missing or not among the families known here.
    """
    model_type = numbers.get("model_type")
    if model_type not in FAMILIES:
        raise InputError(
            f"the language model of {source} belongs to a family that is not known here",
            got=f"model_type {model_type!r}",
            expected="one of " + ", ".join(FAMILIES),
            mend="Choose a model of one of these families; `blocks list` shows some by name.",
        )
    return FAMILIES[model_type]


@contextmanager
def config_faults_told(source: str) -> Iterator[None]:
    """Turn what `transformers` and torch say of numbers that fit no layer into something a user can mend.

    Args:
        source: How to call the model whose config.json it is.

    Raises:
        InputError: In place of any other fault: what a constructor raises depends on the number and on the version.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as fault:
        # The outer error of a checked configuration names its check, the one below it the number.
        cause = fault.__cause__ or fault
        said = next(iter(str(cause).splitlines()), "")
        raise InputError(
            f"config.json of {source} describes no layer that can be built",
            got=f"{type(cause).__name__}: {said}",
            mend="Restore the file.",
        ) from None
