"""Who walks: processes of this machine, jobs of a Slurm cluster, or workers of Ray. All walk the same list.

A launcher decides nothing but where workers run. Since every worker looks for work by itself, one more or one less,
or a second launch beside the first, changes nothing but the time it takes. A worker that dies is told; the others go
on, and its cell is theirs, or the next launch's.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import torch

from medvisionllama.errors import InputError
from medvisionllama.experiments.suite import Tell, Walked, Work, walk
from medvisionllama.listener import Listener
from medvisionllama.run_folder import write_text

Launcher = Literal["local", "slurm", "slurm-local", "slurm-script", "ray"]


@dataclass(frozen=True)
class Job:
    """What a cluster gives each worker.

    Attributes:
        minutes: Longest time; a worker that is stopped leaves a cell that goes on later.
        memory_gb: Of the node.
        partition: Of the cluster; empty for its default.
    """

    minutes: int = 24 * 60
    memory_gb: int = 16
    partition: str = ""


def launch(
    launcher: Launcher,
    work: Work,
    workers: int,
    tell: Tell = print,
    listener: Listener | None = None,
    job: Job | None = None,
) -> Walked:
    """Let so many workers walk, and say what became of the cells.

    Raises:
        InputError: A launcher's package is not installed.
    """
    job = job or Job()
    if launcher == "local":
        return launch_local(work, workers, tell, listener)
    if launcher == "ray":
        return launch_ray(work, workers, tell)
    return launch_slurm(work, workers, job, cluster="slurm" if launcher == "slurm" else "local", tell=tell)


def launch_local(work: Work, processes: int, tell: Tell = print, listener: Listener | None = None) -> Walked:
    """So many processes of this machine; a single one walks right here.

    Without a number of threads the processes share the cores evenly; with several GPUs each takes its own by turns.
    """
    if processes == 1:
        return walk(work, tell=tell, listener=listener)
    # Spawned, not forked: a forked process inherits torch's threads and locks in whatever state they are. A pool for
    # each: one that loses a process ends all of its others.
    with ExitStack() as stack:
        pools = [stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn"))) for _ in range(processes)]
        shared = _with_threads(work, processes)
        walks = [pool.submit(walk, shared, worker, processes) for worker, pool in enumerate(pools)]
        return gathered([each.result for each in walks], tell)


def launch_slurm(
    work: Work, jobs: int, job: Job, cluster: Literal["slurm", "local"] = "slurm", tell: Tell = print
) -> Walked:
    """So many jobs by submitit, waited for; ``local`` runs them as processes here, which is how it is tested.

    Raises:
        InputError: submitit is not installed, or there is no Slurm here.
    """
    try:
        from submitit import AutoExecutor
    except ImportError as error:
        raise _not_installed("submitit", "slurm") from error
    try:
        executor = AutoExecutor(folder=work.runs / "submitit", cluster=cluster)
    except RuntimeError as error:
        raise InputError(
            "there is no Slurm here", got=str(error), mend="Use --launcher slurm-script to write a script for sbatch."
        ) from error
    own = {"slurm_partition": job.partition} if job.partition and cluster == "slurm" else {}
    executor.update_parameters(
        timeout_min=job.minutes,
        mem_gb=job.memory_gb,
        cpus_per_task=work.threads or 1,
        gpus_per_node=0 if work.device == "cpu" or not _wants_gpu(work, cluster) else 1,
        name="medvisionllama",
        **own,
    )
    walks = executor.map_array(walk, [_absolute(work)] * jobs, range(jobs), [jobs] * jobs)
    return gathered([each.result for each in walks], tell)


def launch_ray(work: Work, workers: int, tell: Tell = print) -> Walked:
    """So many workers of Ray: of the cluster that this machine belongs to, else of this machine alone.

    Raises:
        InputError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise _not_installed("ray", "ray") from error
    began = not ray.is_initialized()
    if began:
        try:  # what Ray itself finds: RAY_ADDRESS, or a cluster that runs on this machine
            ray.init(address="auto", log_to_driver=False)
        except ConnectionError:
            tell("Ray finds no cluster: its workers run on this machine alone")
            cores = max(workers, os.cpu_count() or 1)
            ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
    try:
        gpus = 1 if work.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= workers else 0
        remote = ray.remote(num_cpus=1, num_gpus=gpus)(walk)
        shared = _absolute(_with_threads(work, workers))
        walks = [remote.remote(shared, worker, workers) for worker in range(workers)]
        return gathered([partial(ray.get, each) for each in walks], tell)
    finally:
        if began:
            ray.shutdown()


def write_slurm_script(command: Sequence[str], path: Path, jobs: int, job: Job, *, threads: int, gpu: bool) -> Path:
    """A script for ``sbatch`` alone, for clusters without submitit: an array of workers that all walk the same list.

    It works from wherever it is started: paths of the command are those of the folder where it was written.

    Args:
        command: What one worker runs, ``medvisionllama reproduce ...`` with the local launcher and one process.
        path: The script to write.
        jobs: How many workers.
        job: What each is given.
        threads: CPUs of each.
        gpu: Whether each has a GPU.
    """
    lines = [
        "#!/bin/bash",
        "#SBATCH --job-name=medvisionllama",
        f"#SBATCH --array=0-{jobs - 1}",
        f"#SBATCH --time={job.minutes}",
        f"#SBATCH --mem={job.memory_gb}G",
        f"#SBATCH --cpus-per-task={threads}",
        *([f"#SBATCH --partition={job.partition}"] if job.partition else []),
        *(["#SBATCH --gpus=1"] if gpu else []),
        f"#SBATCH --output={path.stem}-%A_%a.log",
        "",
        f"cd {shlex.quote(str(Path.cwd()))} || exit 1",
        "# Every worker takes the next cell that has no row and that no other holds; submit it again to go on.",
        f"{shlex.quote(sys.executable)} -m medvisionllama.cli {shlex.join(command)} "
        f"--worker $SLURM_ARRAY_TASK_ID --workers {jobs}",
        "",
    ]
    write_text(path, "\n".join(lines))
    return path


def gathered(results: Sequence[Callable[[], Walked]], tell: Tell) -> Walked:
    """Wait for every worker, and say what became of the cells; a worker that died takes nobody with it.

    Args:
        results: Waits for one worker and gives its walk, or raises what ended it.
        tell: Told of each worker that was lost.

    Raises:
        InputError: A worker found that the work cannot be done by anybody.
    """
    walks, lost = [], []
    for worker, result in enumerate(results, 1):
        try:
            walks.append(result())
        except InputError:
            raise
        except Exception as error:  # whatever a launcher says of a process that was killed, or a node that went down
            lost.append(f"worker {worker} of {len(results)} was lost: {_in_short(error)}")
            tell(lost[-1])
    return replace(together(walks), lost=lost)


def together(walks: Sequence[Walked]) -> Walked:
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


def _in_short(error: Exception) -> str:
    """The last line of what may be a traceback from another machine."""
    lines = [line for line in str(error).splitlines() if line.strip(" -=")]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else 'without a word'}"


def _absolute(work: Work) -> Work:
    """The same folders for a process that starts in another one."""
    return replace(
        work,
        datasets={name: folder.absolute() for name, folder in work.datasets.items()},
        rows=work.rows.absolute(),
        runs=work.runs.absolute(),
        cache=work.cache.absolute() if work.cache else None,
    )


def _with_threads(work: Work, processes: int) -> Work:
    return work if work.threads else replace(work, threads=max(1, (os.cpu_count() or 1) // processes))


def _wants_gpu(work: Work, cluster: str) -> bool:
    """On a cluster a GPU is asked for unless the CPU is named; here, where there is one."""
    return cluster == "slurm" or torch.cuda.is_available()


def _not_installed(package: str, extra: str) -> InputError:
    return InputError(
        f"{package} is not installed", mend=f"pip install 'medvisionllama[{extra}]', or --launcher local."
    )
