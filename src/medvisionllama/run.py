"""One experiment from top to bottom: data, plan, network, training, segmentation, scores, all in one run folder."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from medvisionllama.checkpoint import load_tensors, model_tensors, put_model_tensors
from medvisionllama.config import Experiment, read_experiment, refuse_other, write_experiment
from medvisionllama.data.dataset import BatchSource, prepare, refuse_unusable
from medvisionllama.data.decathlon import Case, Task, read_task
from medvisionllama.data.dicom import is_dicom_folder, read_series
from medvisionllama.data.dicom_seg import refuse_seg, write_seg
from medvisionllama.data.nifti import ENDINGS, case_name, read_label_map, read_volume, write_label_map
from medvisionllama.data.plan import Plan, make_plan, read_plan, write_plan
from medvisionllama.data.preprocess import label_to_model_grid
from medvisionllama.data.splits import Splits, make_splits, read_splits, write_splits
from medvisionllama.errors import InputError
from medvisionllama.evaluate import Target, score_volume, summarise, tolerance_of
from medvisionllama.geometry import Volume, ras_grid
from medvisionllama.language.block import BlockIdentity, verify
from medvisionllama.language.fetch import fetch_block
from medvisionllama.language.norms import NormWatch
from medvisionllama.models.medvisionllama import MedVisionLlama, build
from medvisionllama.models.zoo import with_block
from medvisionllama.pictures import VolumeRow, keep_pictures, reference_of, volume_rows, write_volumes
from medvisionllama.predict import Member, Segmenter, dice_on_model_grid
from medvisionllama.provenance import environment, parameters, stages
from medvisionllama.run_folder import FORMAT_VERSION, RunFolder, ScoreRow, read_json, write_json, write_scores
from medvisionllama.train import Outcome, seconds_per_step, train
from medvisionllama.whole_file import whole_file

T = TypeVar("T")
# Of `--max-minutes`, what training itself gets; the rest is for validating, segmenting and scoring.
TRAINING_SHARE = 0.85


class Listener(Protocol):
    """Who is told how far things are: a terminal, a plain log, or nobody."""

    def track(self, items: Sequence[T], what: str) -> Iterable[T]:
        """The same items, counted as they are taken."""
        ...

    def training(self, entry: dict[str, Any], steps: int) -> None:
        """One log entry of a training of ``steps`` steps."""
        ...

    def counted(self, what: str) -> Callable[[int, int], None]:
        """A function to be told how many items are done, of how many."""
        ...

    def bytes(self, what: str, arrived: int, total: int) -> None:
        """How much of a download has arrived."""
        ...

    def note(self, text: str) -> None:
        """One line worth telling."""
        ...


class Silent:
    """A listener that tells nobody."""

    def track(self, items: Sequence[T], what: str) -> Iterable[T]:
        """The same items."""
        return items

    def training(self, entry: dict[str, Any], steps: int) -> None:
        """Nothing."""

    def counted(self, what: str) -> Callable[[int, int], None]:
        """A function that does nothing."""
        return lambda done, total: None

    def bytes(self, what: str, arrived: int, total: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Machine:
    """Where and how a run computes; no part of its definition.

    Attributes:
        device: What trains and segments.
        cache: Where prepared cases lie.
        block_cache: Where fetched blocks lie; None for where `blocks fetch` puts them.
        offline: Never ask a hub.
        checkpoint_seconds: At least this long between a training's checkpoints.
        block_source: Where a run's language block lies now, if its folder was moved; its hash is compared all the same.
        dataset: Where a run's data set lies now, if its folder was moved.
    """

    device: torch.device
    cache: Path
    block_cache: Path | None = None
    offline: bool = False
    checkpoint_seconds: float = 30.0
    block_source: str | None = None
    dataset: str | None = None


def default_cache() -> Path:
    """Where prepared cases lie unless said otherwise."""
    return Path.home() / ".cache" / "medvisionllama"


def choose_device(name: str) -> torch.device:
    """``auto`` takes a GPU where there is one.

    Raises:
        InputError: There is no such device.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"no device {name!r} here", got=str(error).splitlines()[0], mend="Use --device cpu, or leave it out."
        ) from error
    return device


def train_run(
    experiment: Experiment | None,
    folder: Path,
    machine: Machine,
    *,
    splits: Splits | None = None,
    max_minutes: float | None = None,
    resume: bool = False,
    named: Collection[str] | None = None,
    command: Sequence[str] = (),
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Train, segment the validation part and score it; returns ``summary.json``.

    Args:
        experiment: What to do; None, with ``resume``, for what the folder says.
        folder: The run folder; new, or with ``resume`` one that was interrupted.
        machine: Where to compute.
        splits: Which cases train and validate; None to draw them from seed 0.
        max_minutes: Turned once into a number of steps, which is stored.
        resume: Go on where the folder's checkpoint stands; a finished run is left as it is.
        named: With ``resume``, which of the experiment's settings must be the folder's own; None for all of them.
        command: What the user typed, kept for the page.
        listener: Who is told of the progress.

    Raises:
        InputError: Data, settings or folder are not as they should be; nothing already written is lost.
    """
    listener = listener or Silent()
    run = RunFolder(folder)
    run.refuse_other_version()
    if resume and run.finished:
        listener.note(f"{folder} is finished already")
        summary: dict[str, Any] = read_json(run.summary)
        return summary
    resume = resume and run.config.exists()
    setup = _stored(run, experiment, named, splits) if resume else _planned(experiment, run, splits)
    _refuse_unwritable(run.path)
    _fetch_block(setup.experiment, machine, listener)
    plan, fold, fraction = setup.plan, setup.experiment.fold, setup.experiment.fraction
    training = _cases(setup.task, setup.splits.training(fold, fraction))
    validation = _cases(setup.task, setup.splits.validation(fold))
    prepared = prepare(training, plan, machine.cache / "prepared", lambda c: listener.track(list(c), "Preparing"))
    to_validate = prepare(validation, plan, machine.cache / "prepared", lambda c: listener.track(list(c), "Preparing"))

    experiment = setup.experiment.lasting(len(training))
    seed, recipe = experiment.seed, experiment.recipe
    batches = BatchSource(prepared, plan.window, recipe.batch_size, recipe.foreground_share, seed)
    model = build(experiment.model, seed=seed, cache=machine.block_cache, offline=machine.offline)
    identity = model.block.identity if model.block is not None else None
    model.to(machine.device)
    if experiment.init_from is not None and not resume:
        listener.note(_take_over(model, Path(experiment.init_from)))
    watch = NormWatch(model.block) if model.block is not None else None
    if not resume:
        if max_minutes is not None:
            pace = seconds_per_step(model, batches, recipe, machine.device)
            recipe = replace(recipe, steps=max(1, int(max_minutes * 60 * TRAINING_SHARE / pace)))
            experiment = replace(experiment, recipe=recipe)
            listener.note(f"{pace:.3f} s a step: {recipe.steps} steps in {max_minutes:g} minutes")
        write_plan(plan, run.plan)
        write_splits(setup.splits, run.splits)
        write_experiment(experiment, run.config)  # last: a folder with it can be resumed
    write_json(run.environment, environment(machine.device, command))

    outcome = train(
        model,
        batches,
        recipe,
        run,
        device=machine.device,
        left_out=model.left_out_of_files(),
        notes={"format": FORMAT_VERSION, "block": identity.to_dict() if identity else None},
        validate=lambda m: dice_on_model_grid(m, plan, to_validate, machine.device, _precision(experiment)),
        observe=lambda: _norms(watch),
        report=lambda entry: listener.training(entry, recipe.steps),
        resume=resume and run.checkpoint.exists(),
        checkpoint_seconds=machine.checkpoint_seconds,
    )
    if watch is not None:
        watch.close()
    if model.block is not None and identity is not None and not model.block.trained:
        verify(model.block, identity)  # frozen means frozen: bit-identical after training
    counts = {"training": len(training), "validation": len(validation), "test": len(setup.splits.test)}
    write_json(run.summary, _summary(experiment, plan, counts, outcome, model, identity, command))
    summary = predict_part(run, "validation", machine, listener=listener)
    run.checkpoint.unlink(missing_ok=True)
    run.checkpoint_state.unlink(missing_ok=True)
    return summary


@dataclass(frozen=True)
class _Setup:
    """What must be known before anything is computed."""

    experiment: Experiment
    task: Task
    splits: Splits
    plan: Plan


def _planned(experiment: Experiment | None, run: RunFolder, splits: Splits | None) -> _Setup:
    """A new run's: every case's headers are looked at, then the training part is planned."""
    if run.config.exists():
        unfinished = not run.finished
        raise InputError(
            f"{run.path} already holds {'an unfinished' if unfinished else 'a'} run",
            mend="Go on with --resume, or name another folder." if unfinished else "Name another folder.",
        )
    if experiment is None:
        raise InputError(f"{run.path} holds no run to go on with", mend="Leave out --resume.")
    task = read_task(experiment.dataset)
    refuse_unusable(task.cases)
    names = [case.name for case in task.cases]
    splits = splits or make_splits(names)
    splits.verify(names)
    training = _cases(task, splits.training(experiment.fold, experiment.fraction))
    plan = make_plan(task, training, protocol=experiment.protocol, grid=experiment.grid)
    return _Setup(experiment.fitted_to(plan), task, splits, plan)


def _stored(run: RunFolder, asked: Experiment | None, named: Collection[str] | None, splits: Splits | None) -> _Setup:
    """An interrupted run's own; what is asked for must not contradict it."""
    experiment, plan, stored = read_experiment(run.config), read_plan(run.plan), read_splits(run.splits)
    if splits is not None and splits.to_dict() != stored.to_dict():
        raise InputError(f"{run.splits} holds other splits than asked for", mend="Leave out --splits and --patient.")
    if asked is not None:
        if named is None:
            steps = asked.recipe.steps or experiment.recipe.steps
            asked = replace(asked.fitted_to(plan), recipe=replace(asked.recipe, steps=steps))
            named = tuple(asdict(asked))
        refuse_other(experiment, asked, named, str(run.config))
    return _Setup(experiment, read_task(experiment.dataset), stored, plan)


def _refuse_unwritable(folder: Path) -> None:
    """Find out before anything is computed whether its result can be kept."""
    trial = folder / ".writable"
    with whole_file(trial) as part:
        part.touch()
    trial.unlink(missing_ok=True)


class Loaded:
    """Trained networks ready to segment; made by :func:`load`."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter

    @property
    def classes(self) -> dict[int, str]:
        """Label value to name, as in the label maps it makes."""
        plan = self.segmenter.plan
        return {1: "foreground"} if plan.merged else dict(plan.classes)

    def segment(self, image: Volume | Path | str) -> Volume:
        """The label map of an image, a NIfTI file or the folder of a DICOM series, in exactly its grid.

        Raises:
            InputError: The file cannot be read, or its channels or intensities do not fit.
        """
        if isinstance(image, Volume):
            return self.segmenter.segment(image)
        return self.segmenter.segment(_read_image(Path(image)), str(image))


def load(*runs: Path | str, device: str = "auto", cache: Path | None = None, offline: bool = False) -> Loaded:
    """Load a run folder, or several as an ensemble: ``mvl.load(RUN).segment(PATH)``.

    Raises:
        InputError: A folder holds no finished run, or its language block cannot be found or is another.
    """
    machine = Machine(choose_device(device), cache or default_cache(), cache, offline)
    return Loaded(load_segmenter([Path(run) for run in runs], machine))


def load_member(folder: Path, machine: Machine) -> Member:
    """A trained network and its plan from a run folder; its block is found again and its hash compared.

    Raises:
        InputError: The folder holds no finished weights, is of another version, or the block is not the same.
    """
    run = RunFolder(folder)
    run.refuse_other_version()
    experiment, plan = read_experiment(run.config), read_plan(run.plan)
    if not run.model.exists():
        raise InputError(
            f"{folder} holds no trained weights yet",
            mend=f"Finish it with `medvisionllama train {experiment.dataset} --run {folder} --resume`.",
        )
    tensors, notes = load_tensors(run.model)
    config = experiment.model
    if machine.block_source is not None and config.middle.kind != "none":
        config = with_block(config, machine.block_source)
    try:
        model = build(config, seed=experiment.seed, cache=machine.block_cache, offline=machine.offline)
    except InputError as error:
        mend = f"{error.mend} If a folder was moved, name its new place by --block."
        raise InputError(
            f"the language block of {folder} cannot be loaded: {error.fault_in_full}", mend=mend
        ) from error
    if model.block is not None:
        if not isinstance(notes.get("block"), dict):
            raise InputError(f"{run.model} was trained without the language block that {run.config} names")
        verify(model.block, BlockIdentity.from_dict(notes["block"]))
    put_model_tensors(model, tensors, model.left_out_of_files())
    return Member(model.to(machine.device).eval(), plan)


def load_segmenter(folders: Sequence[Path], machine: Machine) -> Segmenter:
    """The ensemble of one or several run folders; a folder with folds below counts as all of them.

    Raises:
        InputError: A folder cannot be used, or classes differ.
    """
    runs = [fold for folder in folders for fold in RunFolder(folder).folds()]
    members = [load_member(run.path, machine) for run in runs]
    for run, member in zip(runs, members, strict=True):
        first = members[0].plan
        if (member.plan.classes, member.plan.merged) != (first.classes, first.merged):
            raise InputError(
                f"{run.path} and {runs[0].path} segment different classes",
                got=f"{dict(member.plan.classes)} and {dict(first.classes)}",
                mend="Ensemble runs of one task and protocol.",
            )
    return Segmenter(members, machine.device, _precision(read_experiment(runs[0].config)))


def predict_part(run: RunFolder, part: str, machine: Machine, *, listener: Listener | None = None) -> dict[str, Any]:
    """Segment and score ``validation`` or ``test`` of the run's own split; returns the run's summary with the part.

    Raises:
        InputError: The run is not finished, its data set is gone, or the part is empty.
    """
    listener = listener or Silent()
    run.refuse_other_version()
    experiment, plan, splits = read_experiment(run.config), read_plan(run.plan), read_splits(run.splits)
    _note_unfinished([run], listener)
    task = read_task(machine.dataset or experiment.dataset)
    names = splits.test if part == "test" else splits.validation(experiment.fold)
    if not names:
        raise InputError(f"the run's split has no {part} part", mend="Add cases, or ask for the other part.")
    segmenter = load_segmenter([run.path], machine)
    grids = ("native", "model") if plan.protocol == "paper" else (None,)
    scored: dict[str | None, list[ScoreRow]] = {grid: [] for grid in grids}
    volumes: dict[str | None, list[VolumeRow]] = {grid: [] for grid in grids}
    tolerance = tolerance_of(task) if experiment.tolerance_mm is None else experiment.tolerance_mm
    for case in listener.track(_cases(task, names), f"Segmenting {part}"):
        image, reference = case.read_image(), reference_of(case, plan)
        for grid in grids:
            if grid == "model":
                predicted, compared = _on_model_grid(segmenter, case, image, plan)
            else:
                predicted, compared = segmenter.segment(image, str(case.image)), reference
            out = run.part(part, grid)
            write_label_map(predicted, out / "predictions" / f"{case.name}.nii.gz")
            scored[grid] += score_volume(predicted, compared, _targets(plan), tolerance, case.name)
            volumes[grid] += volume_rows(predicted, compared, _targets(plan), case.name)
    summaries = {}
    for grid, rows in scored.items():
        out = run.part(part, grid)
        write_scores(out / "scores.csv", rows)
        write_volumes(out / "volumes.csv", volumes[grid])
        summaries[grid] = summarise(rows, tolerance, grid or "native")
        write_json(out / "summary.json", summaries[grid])
        if grid != "model":
            keep_pictures(out, task, plan, rows)
    summary: dict[str, Any] = read_json(run.summary) if run.summary.exists() else {}
    summary[part] = _in_short(summaries[grids[0]], scored[grids[0]])
    if "model" in summaries:
        summary[part]["model_grid"] = _in_short(summaries["model"], scored["model"])
    write_json(run.summary, summary)
    return summary


def predict_files(
    folders: Sequence[Path],
    source: Path,
    out: Path,
    machine: Machine,
    *,
    dicom_seg: bool = False,
    listener: Listener | None = None,
) -> list[Path]:
    """Segment a NIfTI file, all NIfTI files of a folder, or the DICOM series of a folder; returns what was written.

    Label maps are called as their images, that of a series as its folder; ``dicom_seg`` adds a DICOM segmentation.
    A file that cannot be segmented does not stop the others: all faults are told at the end.

    Raises:
        InputError: There is nothing to segment, or some files could not be, or ``dicom_seg`` without a series.
    """
    listener = listener or Silent()
    images = _images(source)
    targets = [out / (path.name if path.name.endswith(ENDINGS) else f"{path.name}.nii.gz") for path in images]
    inputs = {path.resolve() for path in images}
    for target in targets:
        if target.resolve() in inputs:
            raise InputError(
                f"{target} would be overwritten by its own label map", mend="Name another folder by --out."
            )
    if dicom_seg:
        refuse_seg(source, out)
    _refuse_unwritable(out)
    segmenter = load_segmenter(folders, machine)
    _note_unfinished([run for folder in folders for run in RunFolder(folder).folds()], listener)
    written, faults = [], []
    for path, target in listener.track(list(zip(images, targets, strict=True)), "Segmenting"):
        try:
            write_label_map(segmenter.segment(_read_image(path), str(path)), target)
            written.append(target)
        except InputError as error:
            faults.append(str(error))
    if faults:
        done = f" The other {len(written)} are written." if written else ""
        raise InputError(f"{len(faults)} of {len(images)} files were not segmented: " + " ".join(faults) + done)
    if dicom_seg:
        segmentation = out / f"{case_name(written[0])}.dcm"
        write_seg(read_label_map(written[0]), source, Loaded(segmenter).classes, segmentation)
        written.append(segmentation)
    return written


def _note_unfinished(runs: Iterable[RunFolder], listener: Listener) -> None:
    for run in runs:
        if not run.summary.exists():
            listener.note(f"{run.path} is not trained to its end: the best weights so far are used")


def _cases(task: Task, names: Iterable[str]) -> list[Case]:
    return [task.case(name) for name in names]


def _precision(experiment: Experiment) -> torch.dtype:
    return torch.bfloat16 if experiment.recipe.precision == "bfloat16" else torch.float32


def _targets(plan: Plan) -> list[Target]:
    if plan.merged:
        return [Target("foreground", (1,))]
    return [Target(name, labels) for name, labels in plan.targets.items()]


def _on_model_grid(segmenter: Segmenter, case: Case, image: Volume, plan: Plan) -> tuple[Volume, Volume]:
    """Prediction and reference on the paper protocol's grid, as the papers must have scored."""
    assert case.label is not None
    affine = ras_grid(image.grid).with_shape(plan.window).affine
    predicted = segmenter.label_map_on_model_grid(image, str(case.image))
    reference = Volume(read_label_map(case.label).array, image.affine)  # one affine, as in Case.read_pair
    compared = label_to_model_grid(reference, plan, str(case.label))
    return Volume(predicted, affine), Volume(compared, affine)


def _in_short(summary: dict[str, Any], rows: Sequence[ScoreRow]) -> dict[str, Any]:
    """What a run's own summary says of a part: means over classes of means over cases."""
    classes = summary["classes"]

    def mean(metric: str) -> float:
        values = [content[metric]["mean"] for content in classes.values()]
        known = [v for v in values if v is not None and np.isfinite(v)]
        return float(np.mean(known)) if known else float("nan")

    return {
        "dice_mean": mean("dice"),
        "hd95_mm_mean": mean("hd95_mm"),
        "nsd_mean": mean("nsd"),
        "dice": {name: content["dice"]["mean"] for name, content in classes.items()},
        "cases": len({row.case for row in rows}),
    }


def _images(source: Path) -> list[Path]:
    """The files to segment, or the one folder that is a DICOM series."""
    if source.is_dir():
        found = sorted(p for p in source.iterdir() if p.name.endswith((".nii", ".nii.gz")) and p.name[0] != ".")
        series = is_dicom_folder(source)
        if found and series:
            raise InputError(f"{source} holds NIfTI and DICOM files", mend="Name a file, or keep them apart.")
        if not found and not series:
            raise InputError(
                f"{source} holds no NIfTI file and no DICOM series",
                expected="files ending in .nii.gz or .nii, or the files of one series",
            )
        return found or [source if source.name not in ("", "..") else source.resolve()]
    if not source.exists():
        raise InputError(f"{source} does not exist", mend="Name a NIfTI file, a folder of them, or a DICOM series.")
    return [source]


def _read_image(path: Path) -> Volume:
    return read_series(path) if path.is_dir() else read_volume(path)


def _take_over(model: MedVisionLlama, folder: Path) -> str:
    """Put another run's weights in where name and shape agree; says how many did.

    Raises:
        InputError: The folder holds no trained weights, or none that fits.
    """
    run = RunFolder(folder)
    run.refuse_other_version()
    tensors, _ = load_tensors(run.model)
    own = model_tensors(model, model.left_out_of_files())
    fitting = {name: t for name, t in tensors.items() if name in own and own[name].shape == t.shape}
    if not fitting:
        raise InputError(f"no weight of {folder} fits the network", mend="Start from a run of a similar network.")
    put_model_tensors(model, own | fitting, model.left_out_of_files())
    return f"{len(fitting)} of {len(own)} tensors start from {folder}"


def _fetch_block(experiment: Experiment, machine: Machine, listener: Listener) -> None:
    """Bring the language block here with progress, where it is not; random blocks of known models need no file."""
    block = experiment.model.middle.block
    if experiment.model.middle.kind in ("language", "trained") and block.init != "random":
        fetch_block(
            block.source,
            block.layers,
            cache=machine.block_cache,
            revision=block.revision,
            offline=machine.offline,
            progress=listener.bytes,
        )


def _norms(watch: NormWatch | None) -> dict[str, Any]:
    """Mean length of the tokens that enter and leave the block: a mismatch explains a block that does nothing."""
    norms = watch.read() if watch is not None else None
    return {"block_norms": asdict(norms)} if norms is not None else {}


def _summary(
    experiment: Experiment,
    plan: Plan,
    counts: dict[str, int],
    outcome: Outcome,
    model: MedVisionLlama,
    identity: BlockIdentity | None,
    command: Sequence[str],
) -> dict[str, Any]:
    return {
        "format": FORMAT_VERSION,
        "task": plan.task,
        "cases": counts,
        "model": experiment.model_name,
        "protocol": experiment.protocol,
        "block": identity.to_dict() if identity else None,
        "recipe": experiment.recipe_name,
        "seed": experiment.seed,
        "fold": experiment.fold,
        "fraction": experiment.fraction,
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 1),
        "best_step": outcome.best_step,
        "classes": {str(value): name for value, name in plan.classes.items()},
        "parameters": parameters(model),
        "stages": stages(model),
        "command": shlex.join(command),
    }
