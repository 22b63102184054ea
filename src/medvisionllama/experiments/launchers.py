"""Who walks: processes of this machine, jobs of a Slurm cluster, or workers of Ray. All walk the same list."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

from medvisionllama.experiments.suite import Walked, Work, walk
from medvisionllama.listener import Listener

Launch = Callable[[Work, int], Walked]


def launch_local(work: Work, processes: int, listener: Listener | None = None) -> Walked:
    """So many processes of this machine; one walks right here.

    Without a number of threads, the processes share the cores evenly.
    """
    if processes == 1:
        return walk(work, listener=listener)
    # Spawned, not forked: a forked process inherits torch's threads and locks in whatever state they are.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        walks = [pool.submit(walk, _with_threads(work, processes), worker, processes) for worker in range(processes)]
        return together([each.result() for each in walks])


def together(walks: list[Walked]) -> Walked:
    """What became of each cell over all walks: measured by one counts for all."""
    order = ("measured", "there already", "failed", "held by another")
    merged = Walked()
    for each in walks:
        for name, ended in each.ended.items():
            known = merged.ended.get(name)
            if known is None or order.index(ended) < order.index(known):
                merged.ended[name] = ended
        merged.faults |= each.faults
    merged.faults = {name: fault for name, fault in merged.faults.items() if merged.ended[name] == "failed"}
    return merged


def _with_threads(work: Work, processes: int) -> Work:
    import os

    return work if work.threads else replace(work, threads=max(1, (os.cpu_count() or 1) // processes))
