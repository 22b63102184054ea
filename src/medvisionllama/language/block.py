"""A language model's lone layer as a block for image tokens: frozen, bidirectional, free of positions.

    tokens (B,N,L) ── cast ── layer i ── layer j … ── final norm ── cast ── tokens (B,N,L)
                              └ LoRA (optional): W x + (alpha/r) B A x, only A and B train

Rotary positions and masks are gone, so that permuting the tokens permutes the result and nothing else
(Kumar et al., MedVisionLlama, 2024, section "LLM integration"; after Pang et al., ICLR 2024, who put a
frozen layer of LLaMA behind a vision transformer). The layer is the one of `transformers`; only what stands in
`attention`, `lean` and `gated`, and in what these call, is computed in another way.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medvisionllama.errors import InputError
from medvisionllama.language.attention import register
from medvisionllama.language.families import Family
from medvisionllama.language.layout import digest

Init = Literal["pretrained", "random", "random-matched", "shuffled"]
_INITS = ("pretrained", "random", "random-matched", "shuffled")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class BlockConfig:
    """Which language model's layers to use, with which weights, and what in them may learn."""

    source: str = "minilm-l6"
    """A name of the catalog, a hub id `owner/name`, or a folder in Hugging Face layout."""
    layers: tuple[int, ...] = (-1,)
    """The layers, applied one after another; negative numbers count from the model's end."""
    init: Init = "pretrained"
    """`random` is drawn by the family's own initialiser, `random-matched` with each pre-trained tensor's own
    mean and standard deviation, `shuffled` holds the pre-trained entries of each tensor in random order."""
    seed: int = 0
    """Random and shuffled blocks are drawn from it, always on the CPU, so that a run can be repeated elsewhere."""
    final_norm: bool = True
    """Whether the model's final norm follows the layers; BERT has none, so there it is skipped."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the frozen weights and of the arithmetic with them."""
    lora_rank: int = 0
    """Rank of the trainable adapters inside the layers; 0 means none."""
    lora_alpha: float | None = None
    """The adapters' product is scaled by `lora_alpha / lora_rank`; None means equal to the rank."""
    lora_targets: tuple[str, ...] = ()
    """Names of the linear layers that get an adapter; empty means the family's query and value projections."""
    trained: bool = False
    """Whether every weight of the block is trained: the parameter-matched control without frozen weights."""
    revision: str | None = None
    """The hub's branch, tag or commit; None takes the catalog's (or `main`)."""

    def __post_init__(self) -> None:
        # Configurations arrive from YAML and JSON too, where a tuple is a list.
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "lora_targets", tuple(self.lora_targets))
        if not self.layers or not all(isinstance(layer, int) for layer in self.layers):
            raise InputError(
                "a language block needs the numbers of its layers",
                got=f"layers {self.layers}",
                mend="Use layers (-1,) for the last.",
            )
        if self.init not in _INITS:
            raise InputError("unknown block init", got=repr(self.init), expected="one of " + ", ".join(_INITS))
        if self.dtype not in DTYPES:
            raise InputError("unknown block dtype", got=repr(self.dtype), expected="one of " + ", ".join(DTYPES))
        if self.lora_rank < 0:
            raise InputError("a LoRA rank cannot be negative", got=str(self.lora_rank), mend="Use 0 for none.")
        if self.lora_rank == 0 and (self.lora_alpha is not None or self.lora_targets):
            raise InputError(
                "lora_alpha and lora_targets say nothing without adapters",
                got="lora_rank 0",
                mend="Set lora_rank, or leave the other two out.",
            )
        if self.trained and self.lora_rank:
            raise InputError(
                "a trained block has no use for adapters",
                got=f"trained with lora_rank {self.lora_rank}",
                mend="Set one of the two.",
            )
        if self.trained and self.dtype != "float32":
            raise InputError(
                "a trained block keeps its weights in float32", got=self.dtype, mend="Set dtype to float32."
            )


@dataclass(frozen=True)
class BlockIdentity:
    """Which weights a block holds: enough to find them again and to tell whether they are the same."""

    id: str
    """The hub id, or the folder as it was given."""
    revision: str | None
    """The commit on the hub, or what else is known of the origin; None for a folder and where no file was read."""
    family: str
    """The family's name."""
    layers: tuple[int, ...]
    """The layers, counted from 0."""
    init: str
    """`pretrained`, `random`, `random-matched` or `shuffled`."""
    seed: int
    """What random and shuffled weights were drawn from."""
    dtype: str
    """Number format of the weights."""
    final_norm: bool
    """Whether a final norm is there: false for BERT, whatever was asked for."""
    sha256: str
    """Of the base tensors as used: see `LanguageBlock.base_sha256`. Empty for a block on the meta device."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """What config.json says that shapes the function beside the tensors, such as the number of heads and the norms'
    epsilon. Empty in records of old, which are compared by their tensors alone."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return asdict(self) | {"layers": list(self.layers), "numbers": dict(self.numbers)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> BlockIdentity:
        """The inverse of `to_dict`."""
        return cls(**{**fields, "layers": tuple(fields["layers"])})


class LanguageBlock(nn.Module):
    """One or several layers of a language model, and its final norm.

    Made by `load_block` or `meta_block`. Dropout stays off in every mode: a frozen block is one fixed
    function, and the trained control must be the same one.

    Attributes:
        width: Width L of its tokens.
        identity: Which weights it started from.
        trained: Whether all of its weights learn.
    """

    def __init__(
        self,
        layers: nn.ModuleList,
        norm: nn.Module | None,
        *,
        family: Family,
        model_config: Any,
        identity: BlockIdentity,
        trained: bool = False,
    ) -> None:
        super().__init__()
        self.layers = layers
        self.norm = norm
        self.family = family
        self.model_config = model_config
        self.identity = identity
        self.trained = trained
        self.lora: Any = None
        """peft's configuration of the adapters, where there are any."""
        self.width = int(model_config.hidden_size)
        self.requires_grad_(trained)
        self.train(self.training)

    def forward(self, tokens_BNL: Tensor) -> Tensor:
        """Send tokens through the block.

        Args:
            tokens_BNL: Tokens (B, N, L) of any floating dtype.

        Returns:
            Tokens of the same shape and dtype; inside, the block computes in its weights' own dtype. On a CPU the final
            norm's backward pass may read them, so they must not be written over in place before.
        """
        return self._apply_layers(tokens_BNL, {})

    def forward_as_language_model(self, tokens_BNL: Tensor) -> Tensor:
        """The same with the rotary positions 0 … N-1 and the causal mask that the model was trained with.

        No image is sent this way. It is there to show that the lone layer equals the full model's, and that
        a test for the absence of positions would notice them. Sliding windows are not drawn: N must not
        exceed them.
        """
        N, dtype, device = tokens_BNL.shape[1], self.base_dtype, tokens_BNL.device
        extras: dict[str, Any] = {}
        if self.family.causal:
            mask = torch.full((N, N), torch.finfo(dtype).min, dtype=dtype, device=device)
            extras["attention_mask"] = mask.triu(1)[None, None]
        if self.family.rotary:
            rotary = getattr(self.family.modeling(), f"{self.family.class_stem}RotaryEmbedding")
            rotary = rotary(self.model_config).to(device)
            extras["position_embeddings"] = rotary(
                torch.empty(0, dtype=dtype, device=device), torch.arange(N, device=device)[None]
            )
        return self._apply_layers(tokens_BNL, extras)

    def _apply_layers(self, tokens_BNL: Tensor, extras: dict[str, Any]) -> Tensor:
        hidden = tokens_BNL.to(self.base_dtype)
        for layer in self.layers:
            hidden = layer(hidden, **extras)
        if self.norm is not None:
            hidden = self.norm(hidden)
        return hidden.to(tokens_BNL.dtype)

    def train(self, mode: bool = True) -> LanguageBlock:
        """Set the mode of the block itself; the layers stay in evaluation mode, where dropout is off."""
        super().train(mode)
        for part in self.children():
            part.eval()
        return self

    @property
    def base_dtype(self) -> torch.dtype:
        """Number format of the base weights (adapters are float32 whatever it is)."""
        return next(value.dtype for name, value in self.named_parameters() if not is_adapter(name))

    def base_tensors(self) -> dict[str, Tensor]:
        """The language model's own tensors, without adapters, under names that adapters do not change."""
        return {
            name.replace(".base_layer.", "."): value
            for name, value in self.state_dict().items()
            if not is_adapter(name)
        }

    def base_state_names(self) -> set[str]:
        """Names, as in `state_dict`, of the frozen tensors: what a run need not save.

        Empty for a trained block, whose every tensor belongs to the run.
        """
        if self.trained:
            return set()
        return {name for name in self.state_dict() if not is_adapter(name)}

    def base_sha256(self) -> str:
        """SHA-256 over the base tensors in the order of their names: name, dtype, shape and bytes of each."""
        return digest(self.base_tensors())

    def merge_adapters(self) -> None:
        """Add the adapters into the base weights and keep only those.

        Over a float32 base the block computes the same to rounding; over a bfloat16 base the sum is rounded
        to bfloat16. The base is then no longer the recorded one: `base_sha256` differs.
        """
        from peft.tuners.lora import LoraLayer

        for parent in list(self.layers.modules()):
            for name, part in list(parent.named_children()):
                if isinstance(part, LoraLayer):
                    part.merge(safe_merge=True)
                    setattr(parent, name, part.get_base_layer())

    def save_adapters(self, folder: Path, *, headless: bool = False) -> None:
        """Write the adapters as plain peft reads them, for the full language model.

        `peft.PeftModel.from_pretrained(full_model, folder)` then adapts the same layers there.

        Args:
            folder: Where adapter_config.json and adapter_model.safetensors go; made if need be.
            headless: For the model without its head (`AutoModel`), whose layers have shorter names, instead of
                the one with it (`AutoModelForCausalLM`, `AutoModelForMaskedLM`).

        Raises:
            InputError: There are no adapters, or one layer is used twice with adapters of its own.
        """
        from safetensors.torch import save_file

        if self.lora is None:
            raise InputError("the block has no adapters to save", mend="Set lora_rank.")
        if len(set(self.identity.layers)) != len(self.identity.layers):
            raise InputError("a layer that is used twice has two adapters", got=str(self.identity.layers))
        prefix, short = self.family.layer_prefixes[headless], self.family.layer_prefixes[True]
        tensors, targets = {}, set()
        for position, index in enumerate(self.identity.layers):
            for name, value in self.layers[position].state_dict().items():
                if is_adapter(name):
                    stored = "base_model.model." + prefix.format(i=index) + name.replace(".default.", ".")
                    tensors[stored] = value.detach().cpu().contiguous()
                    targets.add(short.format(i=index) + name.partition(".lora_")[0])
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        lora = copy(self.lora)
        # Names in full: peft's `layers_to_transform` does not see layers that nothing stands in front of.
        lora.target_modules = targets
        lora.base_model_name_or_path = self.identity.id
        lora.inference_mode = True
        lora.save_pretrained(str(folder))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Come back from a pickle, as in a process that was spawned: there the attention is not known yet."""
        register()
        super().__setstate__(state)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """What `print` shows of the block besides its parts."""
        which = self.identity
        return f"{which.id}, layers {which.layers}, {which.init}, {which.dtype}, width {self.width}"


def verify(block: LanguageBlock, identity: BlockIdentity) -> None:
    """Check that a block holds the weights an identity records (a trained block: that it started from them).

    Raises:
        InputError: The sha256 differs, or a number of the configuration that shapes what is computed.
    """
    found = block.identity.sha256 if block.trained else block.base_sha256()
    if found != identity.sha256:
        raise InputError(
            f"the language block {block.identity.id} is not the one the run was trained with",
            got=f"sha256 {found} ({block.identity.init}, revision {block.identity.revision})",
            expected=f"{identity.sha256} ({identity.init}, revision {identity.revision})",
            mend="Use the same model, revision, layers, init, seed and dtype as the run's config.yaml"
            + (
                "; random weights are the same only where torch draws them the same way."
                if identity.init in ("random", "random-matched")
                else "."
            ),
        )
    # Another version of `transformers` may know other fields: only what both know is compared.
    has, wants = block.identity.numbers, identity.numbers
    if differ := [name for name in wants if name in has and has[name] != wants[name]]:
        raise InputError(
            f"the language block {block.identity.id} has the run's tensors, but computes another function",
            got=", ".join(f"{name} {has[name]}" for name in differ),
            expected=", ".join(f"{name} {wants[name]}" for name in differ),
            mend="Restore the model's config.json.",
        )


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is LoRA's."""
    return ".lora_" in name
