"""The command that measures what is missing, as a table or page tells it: the one that was typed, for any machine."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from medvisionllama.experiments.pretraining import Scope
from medvisionllama.experiments.request import Request

GATED = "llama-3.1-8b"  # the papers' own
SECOND_BLOCK = ("stories260K", "DATA/weights/stories260K/hf")  # of the planned study


def command_of(request: Request) -> str:
    """What repeats a request. No folder of this machine is named: ``DATA`` is where the data sets lie."""
    words = ["medvisionllama", "reproduce", request.table, "--tasks", *(_in_data(path, 1) for path in request.tasks)]
    for option, values in (
        ("--splits", [_told(path) for path in request.splits]),
        ("--seeds", request.seeds),
        ("--fractions", [f"{share:g}" for share in request.fractions]),
        ("--folds", request.folds),
        ("--networks", request.networks),
        ("--middles", request.middles),
        ("--lora", request.loras),
        ("--steps", [request.steps] if request.steps else []),
        ("--grid", [request.grid] if request.grid else []),
        ("--recipe", [request.recipe] if request.recipe else []),
        ("--block", [_block_word(label, source) for label, source in request.blocks]),
        ("--predictions", [f"{name}={_told(folder)}" for name, folder in request.predictions]),
        ("--threads", [request.threads] if request.threads else []),
        ("--device", [request.device] if request.device != "auto" else []),
        ("--out", [_told(request.out)]),
        ("--work", [_told(request.work)] if request.work != request.out / "runs" and _root_of(request.work) else []),
    ):
        words += [option, *map(str, values)] if values else []
    return shlex.join(words)


def study_commands(request: Request, scope: Scope) -> list[str]:
    """What finishes the study, and asks the papers' own language model.

    Args:
        request: What was asked for.
        scope: What the page tells of: perhaps the planned study, of which the request may be a part, or beyond which
            it may go.
    """
    own = [request]
    if scope.is_planned:
        asked = request
        request = replace(
            request, networks=(), middles=(), loras=(), blocks=(), seeds=(), fractions=(), steps=None, device="auto"
        )
        second = replace(
            request, networks=("medvisionllama-u",), middles=("shuffled", "pretrained"), blocks=(SECOND_BLOCK,)
        )
        own = [request, second, *([asked] if scope.added else [])]
    if any(source == GATED for each in own for _, source in each.blocks):
        return [*dict.fromkeys(map(command_of, own))]
    gated = replace(request, blocks=((GATED, GATED),), device="cuda")
    return [
        *dict.fromkeys(map(command_of, own)),  # what was asked for may be the plan itself
        "# the papers' own language model, on a GPU (gated: accept its licence on the hub, then `blocks fetch`):",
        f"medvisionllama blocks fetch {GATED}",
        command_of(gated),
    ]


def _in_data(path: Path, parts: int) -> str:
    return f"DATA/{'/'.join(path.parts[-parts:])}" if path.is_absolute() else str(path)


def _told(path: Path) -> str:
    """As typed; of a path from the root what lies below the working folder or the checkout, else its last part."""
    root = _root_of(path)
    return path.name if root is None else str(path.relative_to(root)) if path.is_absolute() else str(path)


def _root_of(path: Path) -> Path | None:
    """From where a path can be told to others."""
    if not path.is_absolute():
        return Path()
    checkout = next((above for above in path.parents if (above / ".git").exists()), None)
    return next((root for root in (Path.cwd(), checkout) if root and path.is_relative_to(root)), None)


def _block_word(label: str, source: str) -> str:
    where = _in_data(Path(source), 3)
    return where if label == source else f"{label}={where}"
