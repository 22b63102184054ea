"""The training loop: a model, batches and a recipe in; weights, a log and checkpoints out.

Everything random in a step is a function of the seed and the step alone, so that a run that was killed and resumed
ends as one that was not.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from medvisionllama.averaging import WeightAverage
from medvisionllama.checkpoint import (
    load_tensors,
    model_tensors,
    optimizer_tensors,
    put_model_tensors,
    put_optimizer_tensors,
    save_tensors,
)
from medvisionllama.data.ahead import BatchesAhead
from medvisionllama.data.augment import augment
from medvisionllama.data.dataset import BatchSource
from medvisionllama.errors import InputError
from medvisionllama.label_reading import EVERY_VOXEL_ITS_CLASS, LabelReading
from medvisionllama.losses import LossName, segmentation_loss
from medvisionllama.processes import ALONE, Processes
from medvisionllama.recipe import Recipe
from medvisionllama.run_folder import FORMAT_VERSION, RunFolder, write_json

LOG_EVERY_STEPS = 10


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
    validations_since_best: int = 0
    losses: list[float] = field(default_factory=list)  # since the last log entry

    def note(self, dice: float) -> bool:
        """Whether the mean Dice just measured is the best so far, which it then is remembered as."""
        # A tie goes to the later weights; a mean of NaN (no class anywhere) never wins over a number.
        best = self.best_dice is None or math.isnan(self.best_dice) or dice >= self.best_dice
        if best:
            self.best_dice, self.best_step = dice, self.step
        self.validations_since_best = 0 if best else self.validations_since_best + 1
        return best

    def is_over(self, recipe: Recipe) -> bool:
        """Whether all steps are done, or patience is at its end."""
        return self.step >= recipe.steps or 0 < recipe.patience <= self.validations_since_best


@dataclass(frozen=True)
class Validated:
    """What a look at the whole validation volumes found.

    Attributes:
        dice: By class, and their ``mean``.
        loss: The recipe's loss, mean over volumes; None where it was not measured.
    """

    dice: Mapping[str, float]
    loss: float | None = None


Validate = Callable[[nn.Module], Validated]
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
    processes: Processes = ALONE,
) -> Outcome:
    """Train a model and leave ``log.jsonl`` and ``model.safetensors`` in the run folder.

    Until it is done, ``checkpoint.safetensors`` there holds all that is needed to go on. What a log entry says is told
    in :mod:`medvisionllama.run_folder`. Of several processes the first alone validates and writes.

    Args:
        model: On ``device``; only parameters that require gradients are trained.
        batches: Where patches come from; its ``batch_size`` is this process's share of the recipe's.
        recipe: How to train; its ``steps`` is set.
        run: Where files go; seen by all processes.
        device: What trains.
        left_out: Names of ``state_dict`` that no file holds (the frozen block's).
        notes: Written into ``model.safetensors`` (which block belongs to it).
        validate: Looks at whole volumes; the weights of the best mean Dice are kept.
        observe: What else a log entry says of the step just made.
        report: Told every log entry.
        resume: Go on from the checkpoint.
        checkpoint_seconds: At least this long between checkpoints; each validation is followed by one all the same.
        processes: Those that train together.

    Raises:
        InputError: The loss or its gradient is no longer finite, the checkpoint is missing or does not fit, or several
            processes did not start alike.
    """
    optimizer = make_optimizer(model, recipe)
    first = processes.rank == 0
    average = WeightAverage(model, recipe.ema_decay, left_out) if recipe.ema_decay and first else None
    files = _Files(run, model, optimizer, average, left_out, notes, writes=first)
    state = files.restore() if resume else _State()
    _refuse_unlike_starts(model, left_out, state, processes)
    joined = processes.joined(model)
    files.cut_log(state.step)
    started = time.perf_counter() - state.seconds
    saved_at = time.perf_counter()
    validations = recipe.validation_steps() if validate is not None else set()
    with BatchesAhead(batches, processes.count, pinned=device.type == "cuda") as ahead:
        model.train()
        while not state.is_over(recipe):
            step, done = state.step, state.step + 1
            with _interruption_held_back() as held_back:
                loss = train_step(joined, optimizer, ahead, recipe, step, device, processes)
            loss, interrupted = processes.mean(loss, float(held_back()))
            if not math.isfinite(loss):
                raise InputError(
                    f"the loss or its gradient is no longer finite at step {done}",
                    got=str(loss),
                    mend="Lower --recipe.learning_rate, or set --recipe.precision float32.",
                )
            state.step = done
            state.losses.append(loss)
            if average is not None:
                average.update(done)
            if done % LOG_EVERY_STEPS == 0 or done == recipe.steps or done in validations:
                entry: dict[str, Any] = {"step": done, "seconds": 0.0, "loss": sum(state.losses) / len(state.losses)}
                entry |= {"learning_rate": recipe.rate(step)} | observe()
                state.losses = []
                if done in validations and validate is not None:
                    entry |= _look(validate, state, files, processes)
                    model.train()
                    if done < recipe.steps and state.is_over(recipe):
                        entry["stopped_early"] = True
                entry["seconds"] = round(time.perf_counter() - started, 3)
                if first:
                    run.append_log(entry)
                    report(entry)
            state.seconds = time.perf_counter() - started
            # What validating cost is not to be paid again, least of all after the last step: what is left is to score.
            if interrupted or done in validations or time.perf_counter() - saved_at > checkpoint_seconds:
                files.save(state)
                saved_at = time.perf_counter()
            if interrupted:
                raise KeyboardInterrupt
    if state.best_dice is None:
        state.best_step = state.step
        files.keep(state.step)
    return Outcome(state.step, state.seconds, state.best_step, state.best_dice)


def _look(validate: Validate, state: _State, files: _Files, processes: Processes) -> dict[str, Any]:
    """Validate, and keep the weights if they are the best so far; returns what the log says of it."""
    entry: dict[str, Any] = {}
    mean = math.nan
    if files.writes:
        with files.weights_that_count():
            found = validate(files.model)
        mean = found.dice["mean"]
        entry = {"validation_dice": mean, "validation_dice_by_class": dict(found.dice), "validation_loss": found.loss}
    (mean,) = processes.of_first(mean)
    if state.note(mean):
        files.keep(state.step)
    return entry


def _refuse_unlike_starts(model: nn.Module, left_out: set[str], state: _State, processes: Processes) -> None:
    """Nothing is sent before the first step, so that processes that differ would train apart unseen."""
    if processes.count == 1:
        return
    digest = sha256(str(state.step).encode())
    for name, tensor in model_tensors(model, left_out).items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    own = float(int.from_bytes(digest.digest()[:6], "big"))  # 48 bits: a float64 holds them
    if processes.of_first(own) != (own,):
        raise InputError(
            f"process {processes.rank} does not start with the first one's weights",
            mend="Give all of them one version of the program, one data set and one run folder.",
        )


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: BatchSource | BatchesAhead,
    recipe: Recipe,
    step: int,
    device: torch.device,
    processes: Processes = ALONE,
) -> float:
    """One step: draw, bend, forward, backward, clip, update.

    Returns the loss of this process's share of the batch; NaN where the gradient is not finite: the weights are lost.
    """
    # Shares of one batch follow one another in the sequence of draws, so that their number changes nothing in it.
    share = step * processes.count + processes.rank
    batch = batches.batch(share)
    image, label = (tensor.to(device, non_blocking=True) for tensor in (batch.image, batch.label))
    generators = [case_generator(batches.seed, position) for position in batch.positions]
    image, label = augment(image, label, recipe.augment, generators, batch.spacing_mm, batches.mirroring)
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate(step)
    with _dropout_drawn_from(batches.seed, share, device):
        with torch.autocast(device.type, recipe.dtype, enabled=recipe.dtype != torch.float32):
            logits = model(image)
        loss = loss_at_all_resolutions(logits, label, recipe.loss, batches.reading)
        optimizer.zero_grad(set_to_none=True)
        processes.backward(loss)
    trained = [p for p in model.parameters() if p.grad is not None]
    if recipe.clip_norm:
        norm = nn.utils.clip_grad_norm_(trained, recipe.clip_norm)
    else:
        norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    optimizer.step()
    return float(loss.detach()) if norm.isfinite() else math.nan


def loss_at_all_resolutions(
    logits: Tensor | Sequence[Tensor],
    label_BIJK: Tensor,
    name: LossName,
    reading: LabelReading = EVERY_VOXEL_ITS_CLASS,
) -> Tensor:
    """The loss of a network's output; of several, finest first, their mean weighted 1, 1/2, 1/4, ...

    This is deep supervision as nnU-Net has it (Isensee et al. 2021), whose label maps are made coarser by nearest
    voxel too; the coarsest counts here.

    Args:
        logits: ``(B,C,I,J,K)``, or several of ever fewer voxels.
        label_BIJK: Whole numbers.
        name: See :func:`~medvisionllama.losses.segmentation_loss`.
        reading: Likewise.
    """
    if isinstance(logits, Tensor):
        return segmentation_loss(logits, label_BIJK, name, reading)
    total, weights = label_BIJK.new_zeros((), dtype=torch.float32), 0.0
    for level, coarse in enumerate(logits):
        label = interpolate(label_BIJK[:, None].float(), coarse.shape[2:], mode="nearest-exact")[:, 0]
        total = total + 0.5**level * segmentation_loss(coarse, label.to(label_BIJK.dtype), name, reading)
        weights += 0.5**level
    return total / weights


def seconds_per_step(
    model: nn.Module, batches: BatchSource, recipe: Recipe, device: torch.device, processes: Processes = ALONE
) -> float:
    """How long a step takes, from a few that are undone again: model and optimiser are as before.

    The fastest counts: the first ones warm caches, and on a busy machine the others tell of its neighbours.
    """
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    before = {name: tensor.clone() for name, tensor in model_tensors(model, frozen).items()}
    optimizer = make_optimizer(model, recipe)
    joined = processes.joined(model)
    model.train()
    times = []
    with BatchesAhead(batches, processes.count, pinned=device.type == "cuda") as ahead:
        for step in range(8):
            started = time.perf_counter()
            train_step(joined, optimizer, ahead, recipe, step, device, processes)
            times.append(time.perf_counter() - started)
    put_model_tensors(model, before, frozen)
    return processes.of_first(min(times))[0]


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


def case_generator(seed: int, position: int) -> torch.Generator:
    """What is drawn from for the patch at a position of the endless sequence of draws."""
    # The position is spread over the whole range so that neighbouring seeds share no sequence.
    return torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9) % 2**63)


@contextmanager
def _dropout_drawn_from(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Seed the generators that dropout draws from for this step alone, and leave them as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        number = (seed * 0x94D049BB133111EB + step * 0x9E3779B97F4A7C15 + 1) % 2**63
        if device.type in ("cpu", "cuda"):  # no generator but those that are restored
            torch.default_generator.manual_seed(number)
        else:
            torch.manual_seed(number)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        yield


@contextmanager
def _interruption_held_back() -> Iterator[Callable[[], bool]]:
    """Let a step end before Ctrl-C is heeded, or the SIGTERM by which schedulers and ``torchrun`` end their jobs.

    Yields a function that says afterwards whether one came. Signals reach the main thread alone; elsewhere nothing is
    held back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came: list[int] = []
    before = {n: signal.signal(n, lambda number, frame: came.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class _Files:
    """What a training leaves and goes on from. Only one of several processes writes."""

    run: RunFolder
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    left_out: set[str]
    notes: dict[str, Any]
    writes: bool

    def weights_that_count(self) -> AbstractContextManager[None]:
        """Within it the model has the weights that are validated and kept: the average, where there is one."""
        return self.average.in_the_weights_place() if self.average is not None else nullcontext()

    def keep(self, step: int) -> None:
        """Write ``model.safetensors``."""
        if self.writes:
            with self.weights_that_count():
                save_tensors(self.run.model, model_tensors(self.model, self.left_out), self.notes | {"step": step})

    def cut_log(self, step: int) -> None:
        """Drop what a resumed run will write again."""
        if self.writes:
            self.run.cut_log(step)

    def save(self, state: _State) -> None:
        """Write the checkpoint."""
        if not self.writes:
            return
        tensors = _prefixed("model.", model_tensors(self.model, self.left_out)) | optimizer_tensors(self.optimizer)
        if self.average is not None:
            tensors |= _prefixed("average.", self.average.tensors)
        notes = {"format": FORMAT_VERSION} | asdict(state)
        # The notes inside the tensors' own file are what is read again: two files could disagree after a crash.
        save_tensors(self.run.checkpoint, tensors, notes)
        write_json(self.run.checkpoint_state, notes)

    def restore(self) -> _State:
        """Read the checkpoint; every process does."""
        tensors, notes = load_tensors(self.run.checkpoint)
        if notes.pop("format", None) != FORMAT_VERSION:
            raise InputError(f"{self.run.checkpoint} is of another version", mend="Train again without --resume.")
        put_model_tensors(self.model, _under("model.", tensors), self.left_out)
        put_optimizer_tensors(self.optimizer, {n: t for n, t in tensors.items() if n.startswith("optimizer.")})
        if self.average is not None:
            self.average.put(_under("average.", tensors))
        try:
            return _State(**notes)
        except TypeError as error:
            raise InputError(
                f"{self.run.checkpoint} is not understood",
                got=str(error),
                mend="Go on with the version of medvisionllama that wrote it, or train again in another folder.",
            ) from error


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
