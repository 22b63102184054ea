"""The command line: parses and delegates. Every command imports what it needs itself, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvisionllama import __version__
from medvisionllama.errors import InputError

if TYPE_CHECKING:
    from medvisionllama.console import Teller
    from medvisionllama.machine import Machine

DONE, FAULTS_FOUND, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

EPILOG = """\
Research software, not a medical device.
Exit codes: 0 done; 1 the work found faults; 2 bad usage or input; 130 interrupted (a run can be resumed).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options, dotted = parser.parse_known_args(given)
    if dotted and options.command != "train":
        parser.error(f"unrecognized arguments: {' '.join(dotted)}")
    options.dotted, options.typed = dotted, ["medvisionllama", *given]
    try:
        code: int = options.run(options)
    except InputError as error:
        if options.debug:
            traceback.print_exc()
        print(f"medvisionllama: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:  # `| head` has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 (nothing more can be printed)
        return DONE
    except KeyboardInterrupt:
        print("medvisionllama: interrupted; a training goes on with --resume", file=sys.stderr)
        return INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="medvisionllama",
        description="3D medical image segmentation through a frozen block of a pre-trained language model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"medvisionllama {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for add in (
        _add_demo,
        _add_download,
        _add_check,
        _add_plan,
        _add_train,
        _add_predict,
        _add_explain,
        _add_evaluate,
        _add_compare,
        _add_report,
        _add_blocks,
        _add_models,
        _add_benchmark,
    ):
        add(commands, common)
    return parser


def _command(commands: Any, common: argparse.ArgumentParser, name: str, help_text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, description=help_text, parents=[common], allow_abbrev=False
    )
    return parser


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: %(default)s)")
    parser.add_argument("--threads", type=_positive, help="CPU threads (default: all cores)")
    parser.add_argument("--cache", type=Path, help="folder for prepared cases and fetched blocks")
    parser.add_argument("--offline", action="store_true", help="never ask a hub")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _minutes(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no length of time above 0")
    return number


def _add_demo(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = _command(commands, common, "demo", "Generate a task, train two networks, segment, score, draw the page.")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write (default: %(default)s)")
    parser.add_argument("--minutes", type=_minutes, default=5.0, help="time for all of it (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    _add_machine(parser)
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from medvisionllama.demo import run_demo

    page = run_demo(
        options.out,
        _machine(options),
        minutes=options.minutes,
        seed=options.seed,
        command=options.typed,
        listener_named=_teller,
    )
    print(page)
    return DONE


def _add_download(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = _command(commands, common, "download", "Bring one of the ten Decathlon tasks here.")
    parser.add_argument("task", help="such as Task04_Hippocampus")
    parser.add_argument("--to", type=Path, required=True, help="folder to put the task's folder in")
    parser.set_defaults(run=_download)


def _download(options: argparse.Namespace) -> int:
    from medvisionllama.data.download import download_task

    teller = _teller()
    told = download_task(options.task, options.to, progress=lambda done, total: teller.bytes(options.task, done, total))
    print(told)
    return DONE


def _add_check(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = _command(commands, common, "check", "Look through a data set for everything that would go wrong.")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    from medvisionllama.data.check import check_task
    from medvisionllama.run_folder import to_json

    report = check_task(options.dataset, progress=_teller().counted("Checking"))
    if options.json:
        print(to_json(report.to_dict()))
    else:
        for finding in report.errors:
            print(f"error  {finding.case}: {finding.file}: {finding.fault}. {finding.mend}")
        for note in report.notes:
            print(f"note   {note}")
        print(f"{report.cases} cases, {len(report.errors)} errors, {len(report.notes)} notes")
    return FAULTS_FOUND if report.errors else DONE


def _add_plan(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = _command(commands, common, "plan", "Plan a task from its training part.")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="plan.json to write")
    parser.add_argument("--splits", type=Path, help="splits.json (default: drawn with seed 0)")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--protocol", choices=("native", "paper"), default="native")
    parser.add_argument("--grid", type=_positive, default=128, help="edge of the paper protocol's grid")
    parser.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> int:
    from medvisionllama.data.dataset import refuse_unusable
    from medvisionllama.data.decathlon import read_task
    from medvisionllama.data.plan import make_plan, read_plan, write_plan
    from medvisionllama.data.splits import make_splits, read_splits

    task = read_task(options.dataset)
    splits = read_splits(options.splits) if options.splits else make_splits([case.name for case in task.cases])
    splits.verify([case.name for case in task.cases])
    refuse_unusable(task.cases)
    if options.out.exists():
        read_plan(options.out)  # what is there is replaced only if it is a plan
    cases = [task.case(name) for name in splits.training(options.fold)]
    plan = make_plan(task, cases, protocol=options.protocol, grid=options.grid)
    write_plan(plan, options.out)
    print(f"{plan.task}: {plan.training_cases} training cases, window {plan.window}, spacing {plan.spacing_mm} mm")
    return DONE


def _add_train(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = _command(commands, common, "train", "Train a network and score its validation part.")
    parser.epilog = "Any setting: --model.depth 4, --model.middle.rank 4, --recipe.learning_rate 1e-3 ..."
    parser.add_argument("dataset", type=Path, help="a Decathlon task's folder")
    parser.add_argument("--run", dest="folder", type=Path, required=True, help="run folder to write")
    parser.add_argument("--model", default="medvisionllama-u", help="see `models list` (default: %(default)s)")
    parser.add_argument("--block", help="language block: a name of `blocks list`, a hub id, or a folder")
    parser.add_argument("--protocol", choices=("native", "paper"), default="native")
    parser.add_argument("--grid", type=_positive, default=128, help="edge of the paper protocol's grid")
    parser.add_argument("--recipe", help="native, paper-v1, paper-v2, or a YAML file (default: by protocol)")
    parser.add_argument("--splits", type=Path, help="splits.json (default: drawn with seed 0)")
    parser.add_argument(
        "--patient", metavar="PATTERN", help="regular expression that finds the patient in a case's name"
    )
    parser.add_argument("--fold", default="0", help="which part validates: 0 to 4, or all (default: %(default)s)")
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the training patients (few-shot)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tolerance-mm", type=float, help="for NSD (default: the Decathlon's for its tasks)")
    parser.add_argument("--init-from", type=Path, metavar="RUN", help="start from another run's weights where they fit")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_positive)
    length.add_argument("--epochs", type=_positive)
    length.add_argument("--max-minutes", type=_minutes)
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run, by its own settings")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    _add_machine(parser)
    parser.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    from medvisionllama.config import make_experiment
    from medvisionllama.data.decathlon import read_task
    from medvisionllama.data.splits import make_splits, read_splits
    from medvisionllama.run import train_run

    machine = _machine(options)
    names = [case.name for case in read_task(options.dataset).cases]
    splits = read_splits(options.splits) if options.splits else make_splits(names, patient_of=options.patient)
    folds = range(len(splits.folds)) if options.fold == "all" else [_whole(options.fold, "--fold")]
    summaries: dict[str, dict[str, Any]] = {}
    for fold in folds:
        folder = options.folder / f"fold_{fold}" if options.fold == "all" else options.folder
        experiment = make_experiment(
            options.dataset,
            model=options.model,
            block=options.block,
            recipe=options.recipe,
            protocol=options.protocol,
            grid=options.grid,
            fold=fold,
            fraction=options.fraction,
            seed=options.seed,
            tolerance_mm=options.tolerance_mm,
            init_from=options.init_from,
            steps=options.steps,
            epochs=options.epochs,
            overrides=options.dotted,
        )
        fresh = not (options.resume and (folder / "config.yaml").exists())
        summaries[folder.name] = train_run(
            experiment,
            folder,
            machine,
            splits=splits if fresh or options.splits or options.patient else None,
            max_minutes=options.max_minutes,
            resume=options.resume,
            named=_named_settings(options),
            command=options.typed,
            listener=_teller(folder.name if options.fold == "all" else ""),
        )
    _tell_scores(summaries, "validation", options.json)
    return DONE


# The setting of an experiment that each option of `train` names.
SETTINGS = {
    "--model": "model_name",
    "--block": "model.middle.block.source",
    "--protocol": "protocol",
    "--grid": "grid",
    "--recipe": "recipe_name",
    "--fold": "fold",
    "--fraction": "fraction",
    "--seed": "seed",
    "--tolerance-mm": "tolerance_mm",
    "--init-from": "init_from",
    "--steps": "recipe.steps",
    "--epochs": "recipe.epochs",
}


def _named_settings(options: argparse.Namespace) -> list[str]:
    """Which settings were typed: a resumed run must agree with these, and keeps its own for the others."""
    typed = [word.split("=")[0] for word in options.typed if word.startswith("--")]
    dotted = [word.split("=")[0].removeprefix("--") for word in options.dotted if word.startswith("--")]
    return ["dataset", *(SETTINGS[word] for word in typed if word in SETTINGS), *dotted]


def _add_predict(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = _command(commands, common, "predict", "Segment files, or the validation or test part of a run's split.")
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="RUN [RUN ...] [INPUT]",
        help="run folders (several are ensembled), then a NIfTI file, a folder of them, or a DICOM series",
    )
    parser.add_argument("--part", choices=("validation", "test"), help="segment and score this part of the run's split")
    parser.add_argument("--out", type=Path, help="folder for the label maps")
    parser.add_argument(
        "--dicom-seg", action="store_true", help="write a DICOM segmentation beside a series' label map"
    )
    parser.add_argument("--block", help="where the run's language block lies now, if its folder was moved")
    parser.add_argument("--dataset", type=Path, help="where the run's data set lies now, if its folder was moved")
    parser.add_argument("--json", action="store_true")
    _add_machine(parser)
    parser.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from medvisionllama.run_folder import RunFolder, to_json
    from medvisionllama.segment import predict_files, predict_part

    moved = str(options.dataset) if options.dataset else None
    machine = replace(_machine(options), block_source=options.block, dataset=moved)
    if options.part:
        if options.out or options.dicom_seg:
            raise InputError("--part writes into the run folder", mend="Leave out --out and --dicom-seg.")
        runs = [run for path in options.paths for run in RunFolder(path).folds()]
        summaries = {str(run.path): predict_part(run, options.part, machine, listener=_teller()) for run in runs}
        _tell_scores(summaries, options.part, options.json)
        return DONE
    if len(options.paths) < 2 or options.out is None:
        raise InputError(
            "predict needs runs, an input and --out, or a run and --part",
            mend="Try `medvisionllama predict RUN INPUT --out DIR`.",
        )
    *runs, source = options.paths
    written = predict_files(runs, source, options.out, machine, dicom_seg=options.dicom_seg, listener=_teller())
    print(
        to_json({"written": [str(path) for path in written]})
        if options.json
        else "\n".join(str(path) for path in written)
    )
    return DONE


def _add_explain(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = _command(commands, common, "explain", "Collect activation and attention maps of cases into RUN/maps.")
    parser.add_argument("folder", type=Path, metavar="RUN")
    parser.add_argument("--case", dest="cases", nargs="+", required=True, metavar="NAME", help="of the run's data set")
    parser.add_argument(
        "--stages", nargs="+", metavar="STAGE", help="such as encoder, 'mapper in', block, decoder, attention"
    )
    _add_machine(parser)
    parser.set_defaults(run=_explain)


def _explain(options: argparse.Namespace) -> int:
    from medvisionllama.explain import explain_run

    for path in explain_run(options.folder, options.cases, _machine(options), options.stages):
        print(path)
    return DONE


def _add_evaluate(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = _command(commands, common, "evaluate", "Score a folder of label maps against a folder of references.")
    parser.add_argument("predictions", type=Path)
    parser.add_argument("references", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for scores.csv and summary.json")
    parser.add_argument("--dataset", type=Path, help="dataset.json or its folder (default: above REFERENCES)")
    parser.add_argument("--tolerance-mm", type=float, help="for NSD (default: the Decathlon's for its tasks)")
    parser.add_argument("--regions", nargs="+", default=[], metavar="NAME=LABEL,LABEL", help="unions of labels")
    parser.add_argument("--allow-missing", action="store_true", help="score missing predictions as empty ones")
    parser.add_argument("--resample", action="store_true", help="take predictions on other grids to the reference's")
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="score only these references")
    parser.add_argument(
        "--lesions",
        type=float,
        nargs="?",
        const=0.1,
        metavar="MIN_IOU",
        help="count lesions too: found where they overlap by at least this intersection over union (0.1)",
    )
    parser.add_argument("--processes", type=_positive, default=1)
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from medvisionllama.evaluate import evaluate_folders
    from medvisionllama.run_folder import to_json

    counted = _teller().counted("Scoring")
    summary = evaluate_folders(
        options.predictions,
        options.references,
        options.out,
        regions=options.regions,
        tolerance_mm=options.tolerance_mm,
        dataset=options.dataset,
        allow_missing=options.allow_missing,
        resample=options.resample,
        cases=options.cases,
        lesion_min_iou=options.lesions,
        processes=options.processes,
        progress=lambda done, total, case: counted(done, total),
    )
    for note in summary["notes"]:
        print(f"note: {note}", file=sys.stderr)
    if options.json:
        print(to_json(summary))
    else:
        _print_classes(summary)
        _print_lesions(summary)
    return DONE


def _add_compare(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = _command(commands, common, "compare", "Test the differences between evaluated folders, case by case.")
    parser.add_argument(
        "folders", type=Path, nargs="+", help="folders with scores.csv; each is compared with the first"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(), help="folder for comparison.csv, .json, .md and .tex (default: this one)"
    )
    parser.add_argument("--test", choices=("t", "wilcoxon"), default="t", help="whose p is marked and corrected")
    parser.add_argument("--json", action="store_true", help="print the comparison as one JSON object")
    parser.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    from medvisionllama.reports.comparison import compare_folders
    from medvisionllama.run_folder import to_json

    result = compare_folders(options.folders, options.out, test=options.test)
    markdown = result.pop("markdown")
    print(to_json(result) if options.json else markdown)
    return DONE


def _add_report(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = _command(commands, common, "report", "Draw one page of one or several runs.")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="folder for index.html and figures")
    parser.add_argument("--no-images", action="store_true", help="leave out pictures of cases")
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from medvisionllama.reports.page import write_page

    print(write_page(options.runs, options.out, images=not options.no_images))
    return DONE


def _add_blocks(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = _command(commands, common, "blocks", "List, show or fetch language blocks.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = _command(actions, common, "list", "Every language model known by name.")
    listing.set_defaults(run=_blocks_list)
    show = _command(actions, common, "show", "All that is known of one.")
    show.add_argument("name", help="a name of the list, a hub id, or a folder")
    show.set_defaults(run=_blocks_show)
    fetch = _command(actions, common, "fetch", "Bring single layers here, by their own bytes alone.")
    fetch.add_argument("name", help="a name of the list, a hub id, or a folder")
    fetch.add_argument("--layer", type=int, nargs="+", default=[-1], help="negative counts from the end (default: -1)")
    fetch.add_argument("--revision", help="branch, tag or commit on the hub")
    fetch.add_argument("--whole-file", action="store_true", help="take whole files where single layers are not served")
    fetch.add_argument("--offline", action="store_true", help="never ask a hub")
    fetch.set_defaults(run=_blocks_fetch)
    for action in (listing, show, fetch):
        action.add_argument("--json", action="store_true")
        action.add_argument("--cache", type=Path, help="folder for fetched blocks")


def _blocks_list(options: argparse.Namespace) -> int:
    from medvisionllama.language.listing import list_blocks
    from medvisionllama.run_folder import to_json

    blocks = list_blocks()
    if options.json:
        print(to_json([block.to_dict() for block in blocks]))
        return DONE
    rows = [
        (
            block.name,
            block.hub_id or "",
            block.family,
            f"{block.width}",
            f"{block.layers}",
            f"{block.layer_parameters:,}",
            f"{block.layer_bytes / 1e6:.1f} MB" if block.layer_bytes else "",
            (block.revision or "")[:12],
            block.licence or "",
            "embedded" if block.embedded else "gated" if block.gated else "",
        )
        for block in blocks
    ]
    head = ("name", "hub id", "family", "width", "layers", "layer's parameters", "and bytes", "revision", "licence", "")
    _print_table(head, rows)
    return DONE


def _blocks_show(options: argparse.Namespace) -> int:
    from medvisionllama.language.listing import show_block

    _print_object(show_block(options.name, cache=options.cache), options.json)
    return DONE


def _blocks_fetch(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from medvisionllama.language.fetch import fetch_block

    found = fetch_block(
        options.name,
        options.layer,
        cache=options.cache,
        revision=options.revision,
        whole_file=options.whole_file,
        offline=options.offline,
        progress=_teller().bytes,
    )
    results = [asdict(result) for result in found]
    if options.json and len(results) > 1:
        _print_object({"layers": results}, options.json)
    else:
        for result in results:
            _print_object(result, options.json)
    return DONE


def _add_models(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = _command(commands, common, "models", "List networks, or show what one costs.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = _command(actions, common, "list", "Every network known by name.")
    listing.set_defaults(run=_models_list)
    show = _command(actions, common, "show", "Parameters, trainable and frozen, and counted operations.")
    show.add_argument("name")
    show.add_argument("--input", default="128,128,128", help="voxels along I,J,K (default: %(default)s)")
    show.add_argument("--block", help="another language block")
    show.set_defaults(run=_models_show)
    for action in (listing, show):
        action.add_argument("--json", action="store_true")


def _models_list(options: argparse.Namespace) -> int:
    from medvisionllama.models.zoo import DESCRIPTIONS
    from medvisionllama.run_folder import to_json

    if options.json:
        print(to_json([{"name": name, "description": text} for name, text in DESCRIPTIONS.items()]))
    else:
        _print_table(("name", "what it is"), list(DESCRIPTIONS.items()))
    return DONE


def _models_show(options: argparse.Namespace) -> int:
    from medvisionllama.models.costs import cost_of
    from medvisionllama.models.zoo import named, with_block

    config = named(options.name)
    if options.block:
        config = with_block(config, options.block)
    try:
        i, j, k = (int(size) for size in options.input.split(","))
        cost = cost_of(config, (i, j, k))
    except ValueError as error:
        raise InputError(f"--input {options.input}", got=str(error), expected="three sizes such as 64,64,40") from error
    _print_object({"name": options.name} | cost.to_dict(), options.json)
    return DONE


def _add_benchmark(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = _command(commands, common, "benchmark", "Measure speed and memory, as ratios in one run.")
    parser.add_argument("name", help="startup, block ...; an unknown name lists them")
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"), help="file to write (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="folder with the data sets, for benchmarks on real masks")
    parser.add_argument("--only", nargs="+", default=[], metavar="MODEL", help="networks, for benchmarks of those")
    parser.add_argument("--device", default="cpu", help="for the block: cpu, cuda, cuda:1 ... (default: %(default)s)")
    parser.add_argument("--threads", type=_positive, help="for the block: CPU threads (default: all cores)")
    parser.set_defaults(run=_benchmark)


def _benchmark(options: argparse.Namespace) -> int:
    from medvisionllama.experiments.benchmark import run_benchmark
    from medvisionllama.run_folder import to_json

    result = run_benchmark(
        options.name, options.out, options.data, options.only, device=options.device, threads=options.threads
    )
    print(to_json(result["measured"]))
    return DONE


def _print_object(content: dict[str, Any], as_json: bool) -> None:
    from medvisionllama.run_folder import to_json

    if as_json:
        print(to_json(content))
        return
    width = max(len(key) for key in content)
    for key, value in content.items():
        print(f"{key.replace('_', ' '):<{width}}  {f'{value:,}' if type(value) is int else value}")


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _machine(options: argparse.Namespace) -> Machine:
    import torch

    from medvisionllama.machine import Machine, choose_device, default_cache

    if options.threads:
        torch.set_num_threads(options.threads)
    cache = options.cache or default_cache()
    return Machine(choose_device(options.device), cache, options.cache, options.offline)


def _teller(title: str = "") -> Teller:
    from medvisionllama.console import Teller

    return Teller(title)


def _whole(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"{option} {text}", expected="a whole number, or all") from error


def _tell_scores(summaries: dict[str, dict[str, Any]], part: str, as_json: bool) -> None:
    """One run's summary as one object, several runs' as one object by run; or a line a run."""
    from medvisionllama.run_folder import to_json

    if as_json:
        print(to_json(next(iter(summaries.values())) if len(summaries) == 1 else summaries))
        return
    for summary in summaries.values():
        scores = summary[part]
        by_class = ", ".join(f"{name} {value:.4f}" for name, value in scores["dice"].items() if value is not None)
        mean = "not known" if scores["dice_mean"] is None else f"{scores['dice_mean']:.4f}"
        print(f"{summary['model']}: {part} Dice {mean} ({by_class}), n = {scores['cases']}")


def _print_classes(summary: dict[str, Any]) -> None:
    from medvisionllama.reports.outcomes import told

    for name, scores in {**summary["classes"], "overall": summary["overall"]}.items():
        means = ", ".join(
            f"{metric} {scores[metric]['mean']:.4f}" for metric in ("dice", "nsd", "hd95_mm") if scores[metric]["n"]
        )
        print(f"{name}: {means or 'no score'} (n = {scores['dice']['n']}; {told(scores)})")
    if summary["tolerance_mm"] is not None:
        print(f"NSD at {summary['tolerance_mm']:g} mm")


def _print_lesions(summary: dict[str, Any]) -> None:
    if "lesions" not in summary:
        return
    print(f"lesions, found from an intersection over union of {summary['lesions']['min_iou']:g} on")
    for name, scores in summary["lesions"]["classes"].items():
        volumes = [f"{scores[key]['mean']:.2f}" for key in ("volume_ml", "predicted_volume_ml")]
        print(
            f"{name}: {scores['total_found']} of {scores['total_lesions']} found, "
            f"{scores['total_false_positive_lesions']} false positives; "
            f"mean volume {volumes[0]} ml, predicted {volumes[1]} ml"
        )


if __name__ == "__main__":
    sys.exit(main())
