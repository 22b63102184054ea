"""Every network by name. A name is a value of :class:`ModelConfig`, never a class of its own (SPEC 2).

``PAPER_ROWS`` says which name, with which block and input size, is which row of the papers' tables and figures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from medvisionllama.errors import InputError
from medvisionllama.language.block import BlockConfig, Init
from medvisionllama.models.attention import Shape
from medvisionllama.models.medvisionllama import ModelConfig
from medvisionllama.models.middle import Kind, MiddleConfig
from medvisionllama.models.network import NetworkConfig
from medvisionllama.models.peers.dynunet import DynUNetConfig

LLAMA = "llama-3.1-8b"

_V2 = ModelConfig()
_WITHOUT = MiddleConfig(kind="none")
_LINEAR = MiddleConfig(lora="none")
# v1: fusion, hybrid attention, linear mappers, up-convolutions; what it leaves open is as in v2 (SPEC 2).
_V1 = ModelConfig(fusion=(3, 5, 7), attention="hybrid-sequential", middle=_LINEAR, decoder="upconv", pad_input=True)
# Ours, for users. A CPU pays for width and depth; skips and the stem are what carries the Dice (docs/findings.md).
_U = ModelConfig(stem="convolutions", decoder="ushape", width=128, depth=2, heads=4, dropout=0.1, final_norm=True)


def _of_kind(config: ModelConfig, kind: Kind) -> ModelConfig:
    return replace(config, middle=replace(config.middle, kind=kind))


def _starting(config: ModelConfig, init: Init) -> ModelConfig:
    return replace(config, middle=replace(config.middle, block=replace(config.middle.block, init=init)))


def _of_rank(rank: int) -> ModelConfig:
    return replace(_V2, middle=replace(_V2.middle, rank=rank))


MODELS: dict[str, ModelConfig] = {
    # v2
    "vit-baseline": replace(_V2, middle=_WITHOUT),
    "medvisionllama": _V2,
    "medvisionllama-linear": replace(_V2, middle=_LINEAR),
    "medvisionllama-r2": _of_rank(2),
    "medvisionllama-r4": _of_rank(4),
    "medvisionllama-r16": _of_rank(16),
    "medvisionllama-hybrid": replace(_V2, attention="hybrid-sequential"),
    "vit-baseline-hybrid": replace(_V2, attention="hybrid-sequential", middle=_WITHOUT),
    "vit-mlp": replace(_V2, middle=MiddleConfig(kind="large-mlp", lora="none")),
    "vit-depth": replace(_V2, width=1024, depth=17, heads=16, middle=_WITHOUT),
    "vit-depth-minilm": replace(_V2, width=96, depth=22, heads=8, middle=_WITHOUT),
    "as-published-code": replace(_V2, place="before-encoder", middle=MiddleConfig(lora="mappers", rank=4, alpha=1.0)),
    # v1
    "vit-v1": replace(_V1, middle=_WITHOUT),
    "medvisionllama-v1": _V1,
    "medvisionllama-v1-spatial": replace(_V1, attention="spatial"),
    "medvisionllama-v1-parallel": replace(_V1, attention="hybrid-parallel"),
    "medvisionllama-v1-interleaved": replace(_V1, attention="hybrid-interleaved"),
    "vit-mlp-v1": _of_kind(_V1, "mlp"),
    # The controls that the papers have not
    "medvisionllama-identity": _of_kind(_V2, "identity"),
    "medvisionllama-random": _starting(_V2, "random"),
    "medvisionllama-random-matched": _starting(_V2, "random-matched"),
    "medvisionllama-shuffled": _starting(_V2, "shuffled"),
    "medvisionllama-trained": _of_kind(_V2, "trained"),
    # Ours, for users, and its controls
    "vit-u": replace(_U, middle=_WITHOUT),
    "medvisionllama-u": _U,
    "medvisionllama-u-identity": _of_kind(_U, "identity"),
    "medvisionllama-u-random": _starting(_U, "random"),
    "medvisionllama-u-random-matched": _starting(_U, "random-matched"),
    "medvisionllama-u-shuffled": _starting(_U, "shuffled"),
    "medvisionllama-u-trained": _of_kind(_U, "trained"),
}

PEERS: dict[str, DynUNetConfig] = {
    "dynunet": DynUNetConfig(),
    "dynunet-small": DynUNetConfig(base_features=16),
}

DESCRIPTIONS: dict[str, str] = {
    "vit-baseline": "the papers' ViT segmentation network without a block (ViT-Baseline)",
    "medvisionllama": "v2: ViT, LoRA mappers, frozen language block with LoRA, linear decoder",
    "medvisionllama-linear": "v2 Table 5: trainable linear mappers, no LoRA",
    "medvisionllama-r2": "v2 Table 6: LoRA of rank 2 (rank 8 is medvisionllama)",
    "medvisionllama-r4": "v2 Table 6: LoRA of rank 4",
    "medvisionllama-r16": "v2 Table 6: LoRA of rank 16",
    "medvisionllama-hybrid": "v2 with the hybrid attention its text says the encoder has",
    "vit-baseline-hybrid": "the same without a block",
    "vit-mlp": "v2 Table 4: an MLP in the block's place, as many parameters as the block has",
    "vit-depth": "v2 Table 4: no block, but as many parameters as medvisionllama with Llama-3.1-8B's",
    "vit-depth-minilm": "the same, but as many as with the default block, minilm-l6",
    "as-published-code": "the block before the encoder, LoRA of rank 4 in the mappers only",
    "vit-v1": "v1: fusion 3/5/7, sequential hybrid attention, up-convolutions, no block (ViT, HA)",
    "medvisionllama-v1": "v1: the same with the frozen block between linear mappers (HA, sequential)",
    "medvisionllama-v1-spatial": "v1 Table 3: spatial in place of hybrid attention (SA)",
    "medvisionllama-v1-parallel": "v1 Table A1: efficient and channel attention side by side",
    "medvisionllama-v1-interleaved": "v1 Table A1: efficient and channel attention by turns",
    "vit-mlp-v1": "v1 Table 3: GELU and LayerNorm between the mappers (ViT + MLP)",
    "medvisionllama-identity": "control: mappers and residual without a block",
    "medvisionllama-random": "control: a frozen block of the family's own random start",
    "medvisionllama-random-matched": "control: a frozen random block, each tensor with its pre-trained mean and SD",
    "medvisionllama-shuffled": "control: a frozen block whose pre-trained entries are shuffled",
    "medvisionllama-trained": "control: the same block trained from scratch",
    "vit-u": "ours, for users: convolutional stem and skips, no block",
    "medvisionllama-u": "ours, for users: convolutional stem and skips around the frozen language block",
    "medvisionllama-u-identity": "control of ours: mappers and residual without a block",
    "medvisionllama-u-random": "control of ours: a frozen block of the family's own random start",
    "medvisionllama-u-random-matched": "control of ours: a frozen random block with pre-trained means and SDs",
    "medvisionllama-u-shuffled": "control of ours: a frozen block whose pre-trained entries are shuffled",
    "medvisionllama-u-trained": "control of ours: the same block trained from scratch",
    "dynunet": "peer: nnU-Net's plain convolutional U, planned from the window, 32 features at full resolution",
    "dynunet-small": "the same with 16 features: about the size of vit-u where the window is small",
}


@dataclass(frozen=True)
class PaperRow:
    """A row of a table or figure of the papers, as a network of ours.

    Attributes:
        name: Of :data:`MODELS`.
        block: The language model whose block it has, or whose size it matches; None for no block.
        input_size: Where the row is about it, what it is given; the paper's 128^3 otherwise.
    """

    name: str
    block: str | None = None
    input_size: Shape = (128, 128, 128)

    @property
    def config(self) -> ModelConfig:
        """The network."""
        config = replace(named(self.name), input_size=self.input_size)
        return with_block(config, self.block) if self.block else config


_V1_BLOCKS = {
    "Gemma": "gemma-2-9b",
    "Llama": LLAMA,
    "Mistral": "mistral-7b",
    "Qwen": "qwen2-7b",
    "Yi": "yi-1.5-9b",
}
_V1_SIZES: tuple[Shape, ...] = ((64, 64, 40), (128, 128, 80), (240, 240, 156))
_VIT, _MVL = PaperRow("vit-baseline"), PaperRow("medvisionllama", LLAMA)
_VIT_V1, _MVL_V1 = PaperRow("vit-v1"), PaperRow("medvisionllama-v1", LLAMA)
_V1_MODELS = {"ViT": _VIT_V1} | {f"ViT + {name}": replace(_MVL_V1, block=block) for name, block in _V1_BLOCKS.items()}


def _sized(rows: dict[str, PaperRow]) -> dict[str, PaperRow]:
    return {
        f"{label}, {i}x{j}x{k}": replace(row, input_size=(i, j, k))
        for i, j, k in _V1_SIZES
        for label, row in rows.items()
    }


# (version, table or figure) to rows by their printed names, as in `experiments.tables`; peers are not ours to name.
PAPER_ROWS: dict[tuple[str, str], dict[str, PaperRow]] = {
    ("v1", "2"): {"ViT": _VIT_V1, "MedVisionLlama": _MVL_V1},
    ("v1", "3"): {
        "MedVisionLlama (SA)": PaperRow("medvisionllama-v1-spatial", LLAMA),
        "MedVisionLlama (HA)": _MVL_V1,
        "ViT (HA)": _VIT_V1,
        "ViT + MLP (HA)": PaperRow("vit-mlp-v1", LLAMA),
    },
    ("v1", "4"): _V1_MODELS,
    ("v1", "A1"): {
        "Sequential": _MVL_V1,
        "Parallel": PaperRow("medvisionllama-v1-parallel", LLAMA),
        "Interleaved": PaperRow("medvisionllama-v1-interleaved", LLAMA),
    },
    ("v1", "B2"): _sized({"ViT": _VIT_V1, "ViT + Llama": _MVL_V1}),
    ("v1", "D3"): _V1_MODELS,
    ("v2", "2"): {"ViT-Baseline": _VIT, "MedVisionLlama": _MVL},
    ("v2", "3"): {"ViT Baseline": _VIT, "MedVisionLlama": _MVL},
    ("v2", "4"): {"ViT-MLP": PaperRow("vit-mlp", LLAMA), "ViT-Depth": PaperRow("vit-depth"), "MedVisionLlama": _MVL},
    ("v2", "5"): {
        "ViT-Baseline": _VIT,
        "MedVisionLlama (LoRA)": _MVL,
        "MedVisionLlama (Linear)": PaperRow("medvisionllama-linear", LLAMA),
    },
    ("v2", "6"): {
        "2": PaperRow("medvisionllama-r2", LLAMA),
        "4": PaperRow("medvisionllama-r4", LLAMA),
        "8": _MVL,
        "16": PaperRow("medvisionllama-r16", LLAMA),
    },
    ("v2", "F5"): {
        "MedVisionLlama": _MVL,
        "MedVis-BioGPT": PaperRow("medvisionllama", "biogpt"),
        "MedVis-BioBERT": PaperRow("medvisionllama", "biobert"),
        "MedVis-ClinicalBERT": PaperRow("medvisionllama", "clinicalbert"),
    },
}


def named(name: str) -> ModelConfig:
    """The configuration called ``name``.

    Raises:
        InputError: There is none of that name.
    """
    if name not in MODELS:
        raise InputError(f"no model is called {name!r}", expected=", ".join(MODELS), mend="Choose one of these.")
    return MODELS[name]


def network_named(name: str) -> NetworkConfig:
    """The configuration called ``name``, ours or a peer's.

    Raises:
        InputError: There is none of that name.
    """
    if name in PEERS:
        return PEERS[name]
    if name not in MODELS:
        raise InputError(f"no model is called {name!r}", expected=", ".join(DESCRIPTIONS), mend="Choose one of these.")
    return MODELS[name]


def with_block(config: ModelConfig, source: str) -> ModelConfig:
    """The same network around another language model's block (a catalog name, hub id or folder)."""
    block: BlockConfig = replace(config.middle.block, source=source)
    return replace(config, middle=replace(config.middle, block=block))
