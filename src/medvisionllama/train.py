"""The training loop: a model, batches and a recipe in; weights, a log and checkpoints out.

Everything random in a step is a function of the seed and the step alone, so that a run that was killed and resumed
ends as one that was not.
"""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medvisionllama.checkpoint import (
    load_tensors,
    model_tensors,
    optimizer_tensors,
    put_model_tensors,
    put_optimizer_tensors,
    save_tensors,
)
from medvisionllama.data.augment import AugmentConfig, augment
from medvisionllama.data.dataset import BatchSource
from medvisionllama.errors import InputError
from medvisionllama.losses import LossName, segmentation_loss
from medvisionllama.run_folder import FORMAT_VERSION, RunFolder, write_json

LOG_EVERY_STEPS = 10


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; shipped recipes are files of these values.

    Attributes:
        loss: See :func:`medvisionllama.losses.segmentation_loss`.
        optimizer: ``adam`` (the papers), ``adamw`` or ``sgd`` (Nesterov, momentum 0.99).
        learning_rate: Its peak.
        weight_decay: Of weights with two axes or more; biases, norms and embeddings of places are spared.
        schedule: ``constant`` (the papers), ``cosine`` to zero, or ``poly`` (exponent 0.9) to zero.
        warmup: Share of the steps over which the rate rises linearly from zero.
        clip_norm: Largest norm of the gradient; 0 for none.
        batch_size: ``B``.
        steps: Length of the training; 0 to go by ``epochs``.
        epochs: Passes over the training part, where ``steps`` is 0.
        precision: Of the arithmetic; weights and optimiser stay float32.
        foreground_share: How often a patch is centred on foreground.
        validations: How many times the whole validation part is segmented, evenly spread, the last at the end.
        augment: What happens to a batch.
    """

    loss: LossName = "dice_ce"
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "poly"] = "cosine"
    warmup: float = 0.05
    clip_norm: float = 1.0
    batch_size: int = 4
    steps: int = 0
    epochs: int = 50
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    foreground_share: float = 1 / 3
    validations: int = 5
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.steps < 0 or self.epochs < 0 or not (self.steps or self.epochs):
            raise InputError(
                "a recipe needs a batch and a length",
                got=f"batch_size {self.batch_size}, steps {self.steps}, epochs {self.epochs}",
                mend="Set batch_size and one of steps or epochs to at least 1.",
            )
        allowed = {
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "warmup": (0 <= self.warmup < 1, "0 or more, below 1"),
            "clip_norm": (self.clip_norm >= 0, "0 (none) or more"),
            "foreground_share": (0 <= self.foreground_share <= 1, "0 to 1"),
            "validations": (self.validations >= 0, "0 or more"),
        }
        for name, (holds, expected) in allowed.items():
            if not holds:
                raise InputError(f"a recipe's {name}", got=str(getattr(self, name)), expected=expected)

    @property
    def dtype(self) -> torch.dtype:
        """The number format of ``precision``."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    @property
    def for_softmax(self) -> bool:
        """Whether the loss compares classes with one another, background among them; else each target by itself."""
        return self.loss in ("dice_ce", "ce")

    def rate(self, step: int) -> float:
        """The learning rate of step ``step`` (from 0)."""
        warm = max(1, round(self.warmup * self.steps))
        if self.warmup and step < warm:
            return self.learning_rate * (step + 1) / warm
        done = (step - warm if self.warmup else step) / max(1, self.steps - (warm if self.warmup else 0))
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        if self.schedule == "poly":
            return float(self.learning_rate * (1 - done) ** 0.9)
        return self.learning_rate

    def validation_steps(self) -> set[int]:
        """After which steps (counted from 1) the validation part is segmented."""
        return {round(self.steps * (n + 1) / self.validations) for n in range(self.validations)}


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    Attributes:
        steps: Done in all.
        seconds: Spent in all, earlier sittings included.
        best_step: Whose weights ``model.safetensors`` holds.
        best_dice: Their mean Dice on the whole validation volumes; None where nothing was validated.
    """

    steps: int
    seconds: float
    best_step: int
    best_dice: float | None


@dataclass
class _State:
    """How far a training has come: what a checkpoint holds beside tensors."""

    step: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_dice: float | None = None
    losses: list[float] = field(default_factory=list)  # since the last log entry


Validate = Callable[[nn.Module], dict[str, float]]
Report = Callable[[dict[str, Any]], None]


def train(
    model: nn.Module,
    batches: BatchSource,
    recipe: Recipe,
    run: RunFolder,
    *,
    device: torch.device,
    left_out: set[str],
    notes: dict[str, Any],
    validate: Validate | None = None,
    observe: Callable[[], dict[str, Any]] = dict,
    report: Report = lambda entry: None,
    resume: bool = False,
    checkpoint_seconds: float = 30.0,
) -> Outcome:
    """Train a model and leave ``log.jsonl`` and ``model.safetensors`` in the run folder.

    Until it is done, ``checkpoint.safetensors`` there holds all that is needed to go on.

    Args:
        model: On ``device``; only parameters that require gradients are trained.
        batches: Where patches come from.
        recipe: How to train; its ``steps`` is set.
        run: Where files go.
        device: What trains.
        left_out: Names of ``state_dict`` that no file holds (the frozen block's).
        notes: Written into ``model.safetensors`` (which block belongs to it).
        validate: Model to Dice by class and their ``mean``, over whole volumes; the best mean's weights are kept.
        observe: What else a log entry says of the step just made.
        report: Told every log entry.
        resume: Go on from the checkpoint.
        checkpoint_seconds: At least this long between checkpoints.

    Raises:
        InputError: The loss is no longer finite, or the checkpoint is missing or does not fit.
    """
    optimizer = make_optimizer(model, recipe)
    state = _restore(run, model, optimizer, left_out) if resume else _State()
    run.cut_log(state.step)
    started = time.perf_counter() - state.seconds
    saved_at = time.perf_counter()
    validations = recipe.validation_steps() if validate is not None else set()
    model.train()
    interrupted = False
    for step in range(state.step, recipe.steps):
        with _interruption_held_back() as held_back:
            loss = train_step(model, optimizer, batches, recipe, step, device)
        interrupted = interrupted or held_back()
        state.losses.append(loss)
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is no longer finite at step {step + 1}",
                got=str(loss),
                mend="Lower --recipe.learning_rate, or set --recipe.precision float32.",
            )
        done = step + 1
        entry: dict[str, Any] = {"step": done, "seconds": round(time.perf_counter() - started, 3)}
        if done % LOG_EVERY_STEPS == 0 or done == recipe.steps or done in validations:
            entry |= {"loss": sum(state.losses) / len(state.losses), "learning_rate": recipe.rate(step)} | observe()
            state.losses = []
            if done in validations and validate is not None:
                dice = validate(model)
                model.train()
                entry |= {"validation_dice": dice["mean"], "validation_dice_by_class": dice}
                entry["seconds"] = round(time.perf_counter() - started, 3)
                # A tie goes to the later weights; a mean of NaN (no class anywhere) never wins over a number.
                if state.best_dice is None or math.isnan(state.best_dice) or dice["mean"] >= state.best_dice:
                    state.best_dice, state.best_step = dice["mean"], done
                    save_tensors(run.model, model_tensors(model, left_out), notes | {"step": done})
            run.append_log(entry)
            report(entry)
        state.step, state.seconds = done, time.perf_counter() - started
        if interrupted or time.perf_counter() - saved_at > checkpoint_seconds:
            _save(run, model, optimizer, left_out, state)
            saved_at = time.perf_counter()
        if interrupted:
            raise KeyboardInterrupt
    if state.best_dice is None:
        state.best_step = recipe.steps
        save_tensors(run.model, model_tensors(model, left_out), notes | {"step": recipe.steps})
    return Outcome(recipe.steps, state.seconds, state.best_step, state.best_dice)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: BatchSource,
    recipe: Recipe,
    step: int,
    device: torch.device,
) -> float:
    """One step: draw, bend, forward, backward, clip, update. Returns the loss."""
    batch = batches.batch(step)
    image, label = batch.image.to(device), batch.label.to(device)
    generators = [_generator(batches.seed, position) for position in batch.positions]
    image, label = augment(image, label, recipe.augment, generators, batch.spacing_mm)
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate(step)
    with _dropout_drawn_from(batches.seed, step, device):
        with torch.autocast(device.type, recipe.dtype, enabled=recipe.dtype != torch.float32):
            logits = model(image)
        loss: Tensor = segmentation_loss(logits, label, recipe.loss)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
    if recipe.clip_norm:
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], recipe.clip_norm)
    optimizer.step()
    return float(loss.detach())


def seconds_per_step(model: nn.Module, batches: BatchSource, recipe: Recipe, device: torch.device) -> float:
    """How long a step takes, from a few that are undone again: model and optimiser are as before.

    The fastest counts: the first ones warm caches, and on a busy machine the others tell of its neighbours.
    """
    before = copy.deepcopy(model.state_dict())
    optimizer = make_optimizer(model, recipe)
    model.train()
    times = []
    for step in range(8):
        started = time.perf_counter()
        train_step(model, optimizer, batches, recipe, step, device)
        times.append(time.perf_counter() - started)
    model.load_state_dict(before)
    return min(times)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over what the model trains; a frozen block's tensors are never in it."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.99, nesterov=True)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=recipe.learning_rate)


def _generator(seed: int, position: int) -> torch.Generator:
    # The position is spread over the whole range so that neighbouring seeds share no sequence.
    return torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9) % 2**63)


@contextmanager
def _dropout_drawn_from(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Seed the generators that dropout draws from for this step alone, and leave them as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((seed * 0x94D049BB133111EB + step * 0x9E3779B97F4A7C15 + 1) % 2**63)
        yield


@contextmanager
def _interruption_held_back() -> Iterator[Callable[[], bool]]:
    """Let a step end before Ctrl-C is heeded: yields a function that says afterwards whether it was pressed.

    Signals reach the main thread alone; elsewhere nothing is held back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _save(
    run: RunFolder, model: nn.Module, optimizer: torch.optim.Optimizer, left_out: set[str], state: _State
) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model_tensors(model, left_out).items()}
    notes = {"format": FORMAT_VERSION} | asdict(state)
    # The notes inside the tensors' own file are what is read again: two files could disagree after a crash.
    save_tensors(run.checkpoint, tensors | optimizer_tensors(optimizer), notes)
    write_json(run.checkpoint_state, notes)


def _restore(run: RunFolder, model: nn.Module, optimizer: torch.optim.Optimizer, left_out: set[str]) -> _State:
    tensors, notes = load_tensors(run.checkpoint)
    if notes.pop("format", None) != FORMAT_VERSION:
        raise InputError(f"{run.checkpoint} is of another version", mend="Train again without --resume.")
    of_model = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    put_model_tensors(model, of_model, left_out)
    put_optimizer_tensors(optimizer, {n: t for n, t in tensors.items() if n.startswith("optimizer.")})
    return _State(**notes)
