"""``medvisionllama evaluate``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from medvisionllama.commands import DONE
from medvisionllama.commands.options import add_command, positive, teller_of


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    parser = add_command(commands, common, "evaluate", "Score a folder of label maps against a folder of references.")
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
    parser.add_argument("--processes", type=positive, default=1)
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from medvisionllama.evaluate import evaluate_folders
    from medvisionllama.run_folder import to_json

    counted = teller_of().counted("Scoring")
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
