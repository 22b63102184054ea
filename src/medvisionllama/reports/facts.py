"""What was trained on what, as lines of a table: a name, and how a run tells it."""

from __future__ import annotations

from collections.abc import Callable

from medvisionllama.reports.run_contents import RunContents
from medvisionllama.reports.shareable import shareable
from medvisionllama.reports.wording import duration, number


def said(tell: Callable[[RunContents], str], run: RunContents) -> str:
    """One fact of one run; empty where the run does not tell."""
    try:
        return tell(run)
    except (KeyError, TypeError, ValueError, IndexError):
        return ""


def _cases(run: RunContents) -> str:
    cases = run.summary["cases"]
    parts = [f"{cases[part]:,} {part}" for part in ("training", "validation", "test") if cases.get(part) is not None]
    fraction = run.summary.get("fraction")
    share = f" ({fraction:.0%} of the training part)" if fraction not in (None, 1, 1.0) else ""
    return ", ".join(parts) + share


def _block(run: RunContents) -> str:
    block = run.summary["block"]
    if not block:
        return "none"
    layer = ", ".join(str(index) for index in _as_list(block.get("layers")))
    norm = ", final norm on" if block.get("final_norm") else ""
    origin = f" at {block['revision']}" if block.get("revision") else ""
    network = f"{block.get('family', 'family unknown')}, layer {layer}, {block.get('init')}{norm}"
    return f"{shareable(block['id'])}{origin}, {network}"


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _parameters(run: RunContents) -> str:
    counts = run.summary["parameters"]
    return f"{counts['trainable']:,} trained, {counts.get('frozen', 0):,} frozen"


def _steps(run: RunContents) -> str:
    of = f" of {run.summary['planned_steps']:,}" if run.is_unfinished else ""
    return f"{run.summary['steps']:,}{of}"


def _kept(run: RunContents) -> str:
    step = f"step {run.summary['best_step']:,}"
    dice = run.best_validation_dice
    return f"{step}, the last" if dice is None else f"{step}, best validation Dice ({number(dice)})"


def _machine(run: RunContents) -> str:
    known = run.environment
    memory = f"{known['memory_gb']:.0f} GB" if known.get("memory_gb") else ""
    threads = known.get("cores")
    cores = f"{threads} thread{'s' if threads != 1 else ''}" if threads else ""
    device = f"on {known['device']}" if known.get("device") else ""
    return ", ".join(str(part) for part in (known.get("processor"), cores, memory, device) if part)


def _date(run: RunContents) -> str:
    return str(run.environment["date"]).replace("T", " ").replace("+00:00", " UTC")


FACTS: tuple[tuple[str, Callable[[RunContents], str]], ...] = (
    ("Task", lambda run: str(run.summary["task"])),
    ("Classes", lambda run: ", ".join(run.class_names.values())),
    ("Cases", _cases),
    ("Fold", lambda run: str(run.summary["fold"]) if run.summary["fold"] is not None else ""),
    ("Protocol", lambda run: str(run.summary["protocol"])),
    ("Model", lambda run: str(run.summary["model"])),
    ("Parameters", _parameters),
    ("Language block", _block),
    ("Block's sha256", lambda run: run.summary["block"]["sha256"]),
    ("Steps", _steps),
    ("Weights kept", _kept),
    ("Training time", lambda run: duration(run.summary["seconds"])),
    ("Seed", lambda run: str(run.summary["seed"])),
    ("Machine", _machine),
    ("System", lambda run: f"{run.environment['platform']}, Python {run.environment['python']}"),
    ("Date", _date),
)
