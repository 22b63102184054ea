"""Processes of their own for tests, started in an instant: forked from one that has imported what takes long."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

HEAVY = [
    "medvisionllama.run",
    "medvisionllama.models.medvisionllama",
    "lightning_fabric.strategies.ddp",
    "peft",
    "transformers.models.bert.modeling_bert",
    "pytest",
]


def context() -> ForkServerContext:
    """Of processes forked from a server that never computed, so that nothing of torch's threads is torn."""
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(HEAVY)
    return forking


def start(work: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """A process that does ``work``; it must be importable and its arguments picklable."""
    process = context().Process(target=work, args=arguments, daemon=True)
    process.start()
    return process
