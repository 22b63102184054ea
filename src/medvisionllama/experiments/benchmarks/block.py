"""How fast and how large a language block is, as ratios to what it cannot do without.

Speed is one forward and backward pass over the time of the bare matrix products in it, timed in turns in one
run with the same library: the products with each weight, forward and for the gradient of the input (frozen
weights need no third), and the attention's. They are timed twice: into memory that is there already, which is
the harder measure, and as plain calls that make room for their results, as the block has to for its own.
Memory is counted in a fresh process after imports.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from medvisionllama.language.block import BlockConfig, LanguageBlock
from medvisionllama.language.building import load_block, meta_block
from medvisionllama.language.catalog import CATALOG

TOKENS = (64, 216, 512, 4096)
_SCORES_AT_ONCE = 1 << 20  # 2 MB in bfloat16, which stays in a processor's cache


@dataclass(frozen=True)
class Speed:
    """One number of tokens, timed. Seconds are the best of all repeats.

    One thread is timed by the processor time it took, which others at work on the machine blur less; several
    threads and GPUs by the clock.
    """

    tokens: int
    forward_s: float
    backward_s: float
    bare_products_s: float
    """Into memory that is there already, the attention's scores a cacheful at a time."""
    plain_calls_s: float
    """The same products with every result newly made, the scores whole."""
    ratio: float
    """Best forward plus best backward over the best of the bare products."""
    ratio_median: float
    """Median over repeats of the same ratio, each repeat timing all in turn."""
    ratio_to_plain_calls: float
    """As `ratio`, over the plain calls."""


@dataclass(frozen=True)
class Memory:
    """One number of tokens, with the graph of one forward pass alive: counted before the backward pass begins."""

    tokens: int
    layer_bytes: int
    """Bytes of the block's weights."""
    saved_bytes: int
    """Bytes of what autograd keeps for the backward pass, counted by hooks, each storage once."""
    tokens_bytes: int
    """Bytes of the tokens handed in and of those handed out, where autograd does not keep them anyway."""
    grown_bytes: int
    """Growth of the resident memory (on a GPU: of the allocated memory) since the imports."""
    held_bytes: int
    """The same after the C library has given back what is free: what is in use."""
    ratio: float
    """`(grown - saved) / layer`: what the layer costs beside its saved activations."""
    held_ratio: float
    """`(held - saved) / layer`."""
    ratio_beside_tokens: float
    """`(grown - saved - tokens) / layer`: without the tokens, which whoever calls pays for in any case."""
    peak_bytes: int
    """The largest growth until the end of the backward pass, during which gradients stand beside activations."""
    peak_ratio: float
    """`(peak - saved) / layer`."""
    frozen_gradient_bytes: int
    """Gradients of frozen weights after the backward pass."""


def benchmark_block(
    *,
    source: str = "llama-3.1-8b",
    tokens: tuple[int, ...] = TOKENS,
    dtype: str = "bfloat16",
    repeats: int = 5,
    device: str = "cpu",
    threads: int | None = None,
    with_memory: bool = True,
) -> dict[str, Any]:
    """Time and weigh one block of a language model's shape, with random weights (no file is needed).

    Args:
        source: A name of the catalog.
        tokens: Numbers of tokens, in a batch of one.
        dtype: Number format of the weights.
        repeats: How often each is timed; from 2,048 tokens on, a third as often, but three times at least.
        device: `cpu` or a CUDA device.
        threads: Threads of torch; None leaves its own choice.
        with_memory: Whether to count memory too, in fresh processes.

    Returns:
        A JSON-ready object: `speed` and `memory` with one entry for each number of tokens, and what it ran on.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    config = BlockConfig(source=source, layers=(0,), init="random", dtype=dtype)  # type: ignore[arg-type]
    block = load_block(config, offline=True).to(device)
    load_before = _load_average()
    speed = [_time(block, n, repeats if n < 2048 else max(3, repeats // 3)) for n in tokens]
    memory: list[Memory] = []
    if with_memory:
        with TemporaryDirectory() as folder:
            _write_checkpoint(block, Path(folder))
            del block
            gc.collect()
            memory = [_weigh_apart(Path(folder), n, dtype, device) for n in tokens]
    return {
        "benchmark": "block",
        "source": source,
        "dtype": dtype,
        "device": torch.cuda.get_device_name(device) if device != "cpu" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average": [load_before, _load_average()],
        "speed": [asdict(one) for one in speed],
        "memory": [asdict(one) for one in memory],
    }


def _load_average() -> float | None:
    """How many processes want a processor, where the system says so: a busy machine blurs the timings."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _time(block: LanguageBlock, n_tokens: int, repeats: int) -> Speed:
    device = next(block.parameters()).device
    tokens = torch.randn(1, n_tokens, block.width, device=device, dtype=block.base_dtype, requires_grad=True)
    products, plain_calls = bare_products(block, n_tokens), plain_products(block, n_tokens)
    gradient = torch.randn_like(tokens)
    timings = []
    for repeat in range(repeats + 1):
        bare_s, plain_s = _seconds(products, device), _seconds(plain_calls, device)
        results: list[Tensor] = []
        forward_s = _seconds(lambda kept=results: kept.append(block(tokens)), device)  # type: ignore[misc]
        backward_s = _seconds(lambda kept=results: kept[0].backward(gradient), device)  # type: ignore[misc]
        if repeat > 0:  # the first warms caches up
            timings.append((forward_s, backward_s, bare_s, plain_s))
    forward_s, backward_s, bare_s, plain_s = (min(column) for column in zip(*timings, strict=True))
    return Speed(
        tokens=n_tokens,
        forward_s=forward_s,
        backward_s=backward_s,
        bare_products_s=bare_s,
        plain_calls_s=plain_s,
        ratio=(forward_s + backward_s) / bare_s,
        ratio_median=median((one[0] + one[1]) / one[2] for one in timings),
        ratio_to_plain_calls=(forward_s + backward_s) / plain_s,
    )


def _seconds(act: Callable[[], object], device: torch.device) -> float:
    clock = process_time if device.type == "cpu" and torch.get_num_threads() == 1 else perf_counter
    _wait(device)
    start = clock()
    act()
    _wait(device)
    return clock() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bare_products(block: LanguageBlock, n_tokens: int) -> Callable[[], None]:
    """The matrix products without which the block cannot be computed and differentiated, ready to be timed.

    For each weight (out, in): tokens times its transpose, and a gradient times it. For the attention of H
    heads: scores and attended values, and the four products of their gradients. Results are written into memory
    that is there and mapped before the clock starts; scores are made for some queries at a time and written over,
    so that no time goes into fetching memory.
    """
    operands = _Operands.of(block, n_tokens)
    results = {width: torch.empty_like(rows) for width, rows in operands.rows.items()}
    queries, keys = operands.queries, operands.keys
    step = max(1, _SCORES_AT_ONCE // n_tokens)
    scores = queries.new_zeros(step, n_tokens)
    attended, gradient = torch.zeros_like(queries), torch.zeros_like(keys)

    def attend(group: int) -> None:
        key = keys[group]
        for start in range(0, queries.shape[1], step):
            some = slice(start, start + step)
            query = queries[group, some]
            its_scores = torch.mm(query, key.T, out=scores[: len(query)])
            torch.mm(its_scores, key, out=attended[group, some])
            torch.addmm(gradient[group], its_scores.T, query, out=gradient[group])  # summed over the queries

    @torch.no_grad()
    def run() -> None:
        for weight in operands.weights:
            torch.mm(operands.rows[weight.shape[1]], weight.T, out=results[weight.shape[0]])
        for weight in operands.weights:
            torch.mm(operands.rows[weight.shape[0]], weight, out=results[weight.shape[1]])
        for _ in range(2):  # six in all: two results of the scores' shape, two of the queries', two of the keys'
            gradient.zero_()
            for group in range(len(queries)):
                attend(group)

    return run


def plain_products(block: LanguageBlock, n_tokens: int) -> Callable[[], None]:
    """The same products as plain calls of the library: every result in new memory, the scores of all heads at once."""
    operands = _Operands.of(block, n_tokens)
    queries, keys = operands.queries, operands.keys

    @torch.no_grad()
    def run() -> None:
        for weight in operands.weights:
            operands.rows[weight.shape[1]] @ weight.T
        for weight in operands.weights:
            operands.rows[weight.shape[0]] @ weight
        for _ in range(2):
            scores = queries @ keys.transpose(1, 2)
            scores @ keys
            scores.transpose(1, 2) @ queries

    return run


@dataclass(frozen=True)
class _Operands:
    """What the products multiply."""

    weights: list[Tensor]
    rows: dict[int, Tensor]
    """For each width, tokens (N, width)."""
    queries: Tensor
    """(G, H/G * N, D): the query heads that share a key head, end to end."""
    keys: Tensor
    """(G, N, D)."""

    @classmethod
    def of(cls, block: LanguageBlock, n_tokens: int) -> _Operands:
        model, dtype = block.model_config, block.base_dtype
        weights = [part.weight for part in block.layers.modules() if isinstance(part, nn.Linear)]

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, device=weights[0].device, dtype=dtype)

        heads = int(model.num_attention_heads)
        groups = int(getattr(model, "num_key_value_heads", None) or heads)
        head_width = int(getattr(model, "head_dim", None) or model.hidden_size // heads)
        return cls(
            weights,
            {width: noise(n_tokens, width) for weight in weights for width in weight.shape},
            noise(groups, heads // groups * n_tokens, head_width),
            noise(groups, n_tokens, head_width),
        )


def _write_checkpoint(block: LanguageBlock, folder: Path) -> None:
    """The block as a one-layer model in Hugging Face layout."""
    layer_prefix = block.family.layer_prefixes[0].format(i=0)
    norm_prefix = (*block.family.norm_prefixes, "")[0]
    tensors = {
        name.replace("layers.0.", layer_prefix, 1)
        if name.startswith("layers.")
        else name.replace("norm.", norm_prefix, 1): value.cpu()
        for name, value in block.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors")
    entry = next(entry for entry in CATALOG.values() if entry.hub_id == block.identity.id)
    numbers = dict(entry.numbers) | {"num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(numbers), encoding="utf-8")


def _weigh_apart(folder: Path, n_tokens: int, dtype: str, device: str) -> Memory:
    """`weigh` in a process of its own, whose memory nothing else has touched."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(weigh, folder, n_tokens, dtype, device, torch.get_num_threads()).result()


def weigh(folder: Path, n_tokens: int, dtype: str, device: str, threads: int) -> Memory:
    """Count the memory of one block of a checkpoint folder, and of one pass through it.

    Args:
        folder: The checkpoint, in Hugging Face layout; its layer 0 is used.
        n_tokens: Number of tokens, in a batch of one.
        dtype: Number format of the weights.
        device: `cpu` (Linux only: its /proc is read) or a CUDA device.
        threads: Threads of torch.
    """
    torch.set_num_threads(threads)
    config = BlockConfig(source=str(folder), layers=(0,), dtype=dtype)  # type: ignore[arg-type]
    meta_block(config)  # imports what it needs
    warm = torch.randn(64, 64, dtype=torch.bfloat16, device=device)
    (warm @ warm).float().softmax(-1)
    gc.collect()
    meter = _Meter(torch.device(device))
    block = load_block(config).to(device)
    tokens = torch.randn(1, n_tokens, block.width, device=device, dtype=block.base_dtype, requires_grad=True)
    frozen = {weight.untyped_storage().data_ptr() for weight in block.parameters()}
    saved: dict[int, int] = {}

    def see(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(see, lambda tensor: tensor):
        result = block(tokens)
    grown, held = meter.grown(), meter.held()
    result.sum().backward()
    peak = meter.peak()
    layer = sum(weight.nbytes for weight in block.parameters())
    kept = sum(saved.values())
    handed = sum(one.nbytes for one in (tokens, result) if one.untyped_storage().data_ptr() not in saved)
    return Memory(
        tokens=n_tokens,
        layer_bytes=layer,
        saved_bytes=kept,
        tokens_bytes=handed,
        grown_bytes=grown,
        held_bytes=held,
        ratio=(grown - kept) / layer,
        held_ratio=(held - kept) / layer,
        ratio_beside_tokens=(grown - kept - handed) / layer,
        peak_bytes=peak,
        peak_ratio=(peak - kept) / layer,
        frozen_gradient_bytes=sum(w.grad.nbytes for w in block.parameters() if w.grad is not None),
    )


class _Meter:
    """Memory in use since the meter was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.at_start = self._now()

    def grown(self) -> int:
        return self._now() - self.at_start

    def held(self) -> int:
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc keeps freed memory for itself until asked
            libc.malloc_trim(0)
        return self._now() - self.at_start

    def peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.at_start
        return _status_bytes("VmHWM") - self.at_start

    def _now(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int:
    """A field of this process's status on Linux."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
