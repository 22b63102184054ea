"""How a network is trained, as one value; the shipped recipes are files of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from medvisionllama.data.augment import AugmentConfig
from medvisionllama.errors import InputError
from medvisionllama.losses import LossName


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; shipped recipes are files of these values.

    Attributes:
        loss: See :func:`medvisionllama.losses.segmentation_loss`.
        optimizer: ``adam`` (the papers), ``adamw`` or ``sgd`` (Nesterov, momentum 0.99).
        learning_rate: Its peak.
        weight_decay: Of what has two axes or more, learned embeddings of places too; biases and norms are spared.
        schedule: ``constant`` (the papers), ``cosine`` to zero, or ``poly`` (exponent 0.9) to zero.
        warmup: Share of the steps over which the rate rises linearly from zero.
        clip_norm: Largest norm of the gradient; 0 for none.
        batch_size: ``B``, of all processes together.
        steps: Length of the training; 0 to go by ``epochs``.
        epochs: Passes over the training part, where ``steps`` is 0.
        precision: Of the arithmetic; weights and optimiser stay float32.
        foreground_share: How often a patch is centred on foreground.
        validations: How many times the whole validation part is segmented, evenly spread, the last at the end.
        patience: After how many validations without a better Dice the training stops early; 0 for never.
        ema_decay: Of the exponential moving average of the weights, which then is what is validated and kept; 0 for
            none. See :class:`medvisionllama.averaging.WeightAverage`.
        deep_supervision: Whether coarser maps of a ``ushape`` decoder give logits too while training, judged with half
            the weight at each halving of the resolution, as nnU-Net does.
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
    patience: int = 0
    ema_decay: float = 0.0
    deep_supervision: bool = False
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
            "patience": (self.patience >= 0, "0 (never stop early) or more"),
            "ema_decay": (0 <= self.ema_decay < 1, "0 (no average) or more, below 1"),
        }
        for name, (holds, expected) in allowed.items():
            if not holds:
                raise InputError(f"a recipe's {name}", got=str(getattr(self, name)), expected=expected)
        if self.patience and not self.validations:
            raise InputError(
                "a recipe that stops early must validate",
                got=f"patience {self.patience}, validations 0",
                mend="Set validations to more than patience, or patience to 0.",
            )

    @property
    def dtype(self) -> torch.dtype:
        """The number format of ``precision``."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    @property
    def for_softmax(self) -> bool:
        """Whether the loss compares classes with one another, background among them; else each target by itself."""
        return self.loss in ("dice_ce", "ce")

    def for_regions(self) -> Recipe:
        """The same with a loss for overlapping targets, each by itself: Dice stays, entropy becomes binary."""
        sigmoid: dict[LossName, LossName] = {"dice_ce": "dice_bce", "ce": "bce"}
        return replace(self, loss=sigmoid.get(self.loss, self.loss))

    def rate(self, step: int) -> float:
        """The learning rate of step ``step`` (from 0); beyond the last one, what the schedule ends at."""
        warm = max(1, round(self.warmup * self.steps))
        if self.warmup and step < warm:
            return self.learning_rate * (step + 1) / warm
        done = (step - warm if self.warmup else step) / max(1, self.steps - (warm if self.warmup else 0))
        done = min(1.0, done)  # steps that are timed may be more than a short training has
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        if self.schedule == "poly":
            return float(self.learning_rate * (1 - done) ** 0.9)
        return self.learning_rate

    def validation_steps(self) -> set[int]:
        """After which steps (counted from 1) the validation part is segmented."""
        return {round(self.steps * (n + 1) / self.validations) for n in range(self.validations)}
