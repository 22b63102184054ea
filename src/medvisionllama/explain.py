"""What a trained network's stages make of a case: activation and attention maps, collected by hooks from outside.

No network carries anything for this: hooks see what stages leave behind in an ordinary forward pass, and attention
weights are computed again from what entered the attention.

Axes: ``B`` batch, ``M`` modalities, ``C`` output channels, ``I J K`` voxels, ``i j k`` the token grid, ``N`` tokens,
``H`` heads, ``D`` width of a head, ``Q`` some of the queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from medvisionllama.config import read_experiment
from medvisionllama.data.decathlon import read_task
from medvisionllama.data.plan import read_plan
from medvisionllama.data.preprocess import to_model_grid
from medvisionllama.data.way_back import to_input_resolution
from medvisionllama.errors import InputError
from medvisionllama.geometry import Array
from medvisionllama.language.block import LanguageBlock
from medvisionllama.loading import load_segmenter
from medvisionllama.machine import Machine
from medvisionllama.models.attention import SelfAttention, Shape, attention_map
from medvisionllama.models.medvisionllama import MedVisionLlama
from medvisionllama.pictures import picture_arrays
from medvisionllama.reference import read_reference
from medvisionllama.run_folder import RunFolder
from medvisionllama.sliding_window import sliding_window
from medvisionllama.whole_file import whole_file

ATTENTION, ENCODER_ATTENTION, BLOCK_ATTENTION = "attention", "encoder attention", "block attention"
# Attention weights are made for so many queries at a time: memory grows with the tokens, not with their square.
QUERIES_AT_ONCE = 256


def explain_run(
    folder: Path, cases: Sequence[str], machine: Machine, stages: Sequence[str] | None = None
) -> list[Path]:
    """Collect the maps of some cases into ``RUN/maps/CASE.npz``, in each image's own resolution and RAS order.

    A file holds the arrays of a picture (``image``, ``prediction``, ``affine``, ``reference`` where there is one),
    ``stages`` (names, in the model's order, attention last) and ``maps`` ``(stages,I,J,K)`` float32.

    Args:
        folder: A finished run.
        cases: Names of cases of the run's data set, with or without a reference.
        machine: Where to compute.
        stages: Which of :func:`stage_names`; None for those of :func:`default_stages`.

    Raises:
        InputError: The run is not finished or has folds, its data set or a case is not there, or a stage is unknown.
    """
    run = RunFolder(folder)
    if run.folds()[0].path != run.path:
        raise InputError(f"{folder} holds several folds", mend=f"Explain one of them, such as {run.folds()[0].path}.")
    experiment, plan = read_experiment(run.config), read_plan(run.plan)
    task = read_task(machine.dataset or experiment.dataset)
    wanted = [task.case(name) for name in cases]
    segmenter = load_segmenter([folder], machine)
    model = segmenter.members[0].model
    if not isinstance(model, MedVisionLlama):
        raise InputError(f"{folder} holds a rival's network", mend="Maps are collected from networks of tokens.")
    names = checked_stages(model, stages)
    written = []
    for case in wanted:
        image = case.read_image()
        prepared = torch.from_numpy(to_model_grid(image, plan, str(case.image)))
        maps = volume_maps(model, prepared.to(machine.device), plan.window, names, softmax=plan.softmax)
        reference = read_reference(case, plan).volume if case.label is not None else None
        arrays = picture_arrays(image, segmenter.segment(image, str(case.image)), reference)
        path = run.path / "maps" / f"{case.name}.npz"
        write_maps(path, arrays, names, to_input_resolution(maps.cpu().numpy(), image.grid))
        written.append(path)
    return written


def write_maps(path: Path, picture: dict[str, Array], stages: Sequence[str], maps_SIJK: Array) -> None:
    """Write ``maps/CASE.npz`` whole or not at all.

    Raises:
        InputError: The folder cannot be written.
    """
    arrays = picture | {"stages": np.array(stages), "maps": maps_SIJK.astype(np.float32)}
    with whole_file(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # arrays, not options


def stage_names(model: MedVisionLlama) -> list[str]:
    """Every stage that has a map: those with activations in the model's order, then its attentions."""
    attentions = list(_attentions(model))
    return [*_parts(model), *([ATTENTION] if attentions else []), *attentions]


def default_stages(model: MedVisionLlama) -> list[str]:
    """What the papers' figures show: all but the stem, and the last attention on the way to the output."""
    return [name for name in stage_names(model) if name not in ("stem", ENCODER_ATTENTION, BLOCK_ATTENTION)]


def checked_stages(model: MedVisionLlama, stages: Sequence[str] | None) -> list[str]:
    """The stages asked for, in the model's order; None for the default ones.

    Raises:
        InputError: The network has no such stage.
    """
    if stages is None:
        return default_stages(model)
    known = stage_names(model)
    if unknown := [name for name in stages if name not in known]:
        raise InputError(f"the network has no stage {unknown[0]!r}", expected="some of " + ", ".join(known))
    return [name for name in known if name in stages]


def volume_maps(
    model: MedVisionLlama, image_MIJK: Tensor, window: Shape, stages: Sequence[str], *, softmax: bool = True
) -> Tensor:
    """``(stages,I,J,K)`` of a whole image on the model's grid, blended from windows as its logits are.

    ``softmax`` says whether the output's channels exclude one another; see :func:`watching` for the maps.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), watching(model, stages, softmax=softmax) as collect:
            return sliding_window(collect, image_MIJK, window)
    finally:
        model.train(was_training)


@contextmanager
def watching(
    model: MedVisionLlama, stages: Sequence[str], *, softmax: bool = True
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Hooks on the stages while the context lasts; it gives a function from images to their maps.

    The function takes ``(B,M,I,J,K)`` to ``(B,stages,I,J,K)``: token maps are stretched linearly to the voxels.

    - Of a stage with tokens: the root mean square over a token's features. It has no sign and does not depend on the
      width, so that encoder and block compare.
    - Of the decoder: the log-odds of foreground (:func:`foreground_log_odds`).
    - Of an attention: how much each token is looked at, the mean over heads and queries of the weights it gets, times
      ``N``: 1 is the share of a token that nobody prefers.
    """
    parts, attentions = _parts(model), _attentions(model)
    if attentions:
        attentions[ATTENTION] = list(attentions.values())[-1]
    seen: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name in stages:
            if name in parts:
                hooks.callback(parts[name].register_forward_hook(_keep(seen, name)).remove)
            else:
                for handle in attentions[name].hooks():
                    hooks.callback(handle.remove)

        def collect(images_BMIJK: Tensor) -> Tensor:
            # Not model(...): a compiled network would not come past the hooks.
            model.forward(images_BMIJK)
            maps = []
            for name in stages:
                if name == "decoder":
                    maps.append(foreground_log_odds(seen.pop(name), softmax=softmax))
                elif name in parts:
                    maps.append(_on_voxels(model, seen.pop(name).square().mean(-1).sqrt(), images_BMIJK))
                else:
                    maps.append(_on_voxels(model, received(attentions[name]), images_BMIJK))
            I, J, K = images_BMIJK.shape[2:]  # noqa: E741
            return torch.stack([found[..., :I, :J, :K] for found in maps], dim=1)  # without what the network padded

        yield collect


def foreground_log_odds(logits_BCIJK: Tensor, *, softmax: bool = True) -> Tensor:
    """``(B,I,J,K)``: of any class against the background, the first channel.

    Without ``softmax``, or of a single channel, every channel is a target by itself: of the likeliest one there.
    """
    if not softmax or logits_BCIJK.shape[1] == 1:
        return logits_BCIJK.amax(dim=1)
    return logits_BCIJK[:, 1:].logsumexp(dim=1) - logits_BCIJK[:, 0]


@dataclass
class EncoderAttention:
    """The last attention of an encoder in which tokens look at tokens.

    Attributes:
        module: Plain or efficient; of the latter, the weights are those plain attention would need for its result
            (:meth:`~medvisionllama.models.attention.EfficientAttention.map`).
    """

    module: SelfAttention
    _entered: dict[str, Tensor] = field(default_factory=dict)

    def hooks(self) -> list[Any]:
        """Begin to watch; the handles end it."""

        def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._entered["tokens"] = inputs[0]

        return [self.module.register_forward_pre_hook(keep)]

    def rows(self) -> Iterator[Tensor]:
        """``(B,H,Q,N)`` of the latest forward pass, for some queries after others; a row sums to 1."""
        tokens_BNE = self._entered["tokens"]
        for first in range(0, tokens_BNE.shape[1], QUERIES_AT_ONCE):
            yield self.module.map(tokens_BNE, slice(first, first + QUERIES_AT_ONCE))


@dataclass
class BlockAttention:
    """The attention of a language block's last layer, adapters included.

    Attributes:
        block: Of any family: queries and keys are watched where they leave their projections, which no position or
            norm comes after here.
    """

    block: LanguageBlock
    _left: dict[str, Tensor] = field(default_factory=dict)

    def hooks(self) -> list[Any]:
        """Begin to watch; the handles end it."""

        def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
            def seen(module: nn.Module, inputs: Any, output: Tensor) -> None:
                self._left[name] = output

            return seen

        query, key = self._projections
        return [query.register_forward_hook(keep("query")), key.register_forward_hook(keep("key"))]

    def rows(self) -> Iterator[Tensor]:
        """``(B,H,Q,N)`` of the latest forward pass, for some queries after others; a row sums to 1."""
        attention = self._attention
        head = getattr(attention, "head_dim", None) or attention.attention_head_size
        q_BHND, k_BGND = (_split_heads(self._left[name], head) for name in ("query", "key"))
        k_BHND = k_BGND.repeat_interleave(q_BHND.shape[1] // k_BGND.shape[1], dim=1)
        softcap = getattr(attention, "attn_logit_softcapping", None)
        for some_BHQD in torch.split(q_BHND, QUERIES_AT_ONCE, dim=2):
            yield attention_map(some_BHQD, k_BHND, attention.scaling, softcap)

    @property
    def _attention(self) -> Any:
        """The module that holds the projections."""
        query = self.block.family.query_value[0]
        return next(m for m in self.block.layers[-1].modules() if query in dict(m.named_children()))

    @property
    def _projections(self) -> tuple[nn.Module, nn.Module]:
        query = self.block.family.query_value[0]
        key = {"q_proj": "k_proj", "query": "key"}[query]
        return getattr(self._attention, query), getattr(self._attention, key)


def _split_heads(tokens_BNL: Tensor, width: int) -> Tensor:
    """``(B,N,H*D)`` to ``(B,H,N,D)``."""
    B, N, _ = tokens_BNL.shape
    return tokens_BNL.view(B, N, -1, width).transpose(1, 2)


def received(attention: EncoderAttention | BlockAttention) -> Tensor:
    """``(B,N)``: the mean over heads and queries of what each token is given, times ``N``."""
    total_BN: Tensor | None = None
    for rows_BHQN in attention.rows():
        some = rows_BHQN.float().mean(dim=1).sum(dim=1)
        total_BN = some if total_BN is None else total_BN + some
    assert total_BN is not None
    return total_BN  # the mean over N queries, times N


def _parts(model: MedVisionLlama) -> dict[str, nn.Module]:
    """The stages whose output is one map of tokens, or logits, in the order of the flow."""
    return {name: part for name, part in model.parts().items() if name not in ("position", "norm in")}


def _attentions(model: MedVisionLlama) -> dict[str, EncoderAttention | BlockAttention]:
    """The last attention of encoder and block, where tokens look at tokens there, in the order of the flow."""
    found: dict[str, EncoderAttention | BlockAttention] = {}
    of_encoder = [module for module in model.encoder.modules() if isinstance(module, SelfAttention)]
    if of_encoder:
        found[ENCODER_ATTENTION] = EncoderAttention(of_encoder[-1])
    if model.block is not None:
        found[BLOCK_ATTENTION] = BlockAttention(model.block)
    return found if model.config.place == "after-encoder" else dict(reversed(found.items()))


def _keep(seen: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        seen[name] = (output[0] if isinstance(output, tuple) else output).float()

    return keep


def _on_voxels(model: MedVisionLlama, flat: Tensor, images_BMIJK: Tensor) -> Tensor:
    """A map over tokens, ``(B,N)`` or ``(B,i,j,k)``, to one over the voxels of whole patches."""
    whole = model.config.padded(images_BMIJK.shape[2:])
    grid = [edge // patch for edge, patch in zip(whole, model.config.patch_size, strict=True)]
    return interpolate(flat.reshape(-1, 1, *grid), whole, mode="trilinear")[:, 0]
