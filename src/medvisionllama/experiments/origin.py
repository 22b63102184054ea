"""Where a page's numbers come from: trainings, machines, programs, and whether those compared are alike in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from medvisionllama.experiments.rows import Row
from medvisionllama.reports.wording import counted


def provenance(rows: Sequence[Row]) -> str:
    """Trainings, hours, seeds, machines and programs, as a list; empty without rows."""
    if not rows:
        return ""
    training = sum(row.seconds for row in rows)
    sources = Counter(row.content["source"] for row in rows)
    machines = Counter(
        f"{row.content['environment'].get('processor')}, {row.content['environment'].get('device')}, "
        f"{row.content['environment'].get('cores')} thread(s)"
        for row in rows
    )
    anew = Counter(row.content["scored_source"] for row in rows if row.content.get("scored_source"))
    torches = sorted({row.content["environment"]["packages"]["torch"] for row in rows})
    dates = sorted(row.content["environment"]["date"][:10] for row in rows)
    return "\n".join(
        [
            f"- {counted(len(rows), 'training')}, {training / 3600:.1f} hours of training in all, by the clock.",
            f"- Seeds: {', '.join(str(seed) for seed in sorted({row.seed for row in rows}))}.",
            f"- Machine: {'; '.join(f'{name} ({n} rows)' for name, n in machines.most_common())}.",
            f"- Program: {'; '.join(f'`{name}` ({n} rows)' for name, n in sources.most_common())}; torch "
            f"{', '.join(torches)}; {dates[0]} to {dates[-1]}.",
            *(f"- Scored anew by `{name}` ({n} rows), from the same weights." for name, n in anew.most_common()),
        ]
    )


def best_weights(rows: Sequence[Row]) -> str:
    """Which weights were scored, as an item of that list: validation chose them, which flatters its own scores."""
    if not rows:
        return ""
    last = sum(row.content["best_step"] == row.steps for row in rows)
    return (
        "- Weights: those with the best Dice on the validation part among the looks at it while training; in "
        f"{last} of {counted(len(rows), 'training')} those of the last step."
    )


def unlike_pairs(pairs: Sequence[tuple[Row, Row]], subject: str) -> str:
    """Whether differences are of what is compared alone: other programs and machines round otherwise.

    Args:
        pairs: The trainings behind them; none give no sentence.
        subject: What they are meant to differ in, such as ``their middle``.
    """
    if not pairs:
        return ""
    unlike = Counter(what for pair in pairs for what in _unlike(*pair))
    if not unlike:
        one = len(pairs) == 1
        return (
            f"{'The one pair' if one else f'All {len(pairs)} pairs'} of trainings behind these differences "
            f"{'is' if one else 'are each'} of one program, one version of torch and one kind of machine."
        )
    said = "; ".join(f"{what} ({n})" for what, n in unlike.most_common())
    return (
        f"**Of the {counted(len(pairs), 'pair')} of trainings behind these differences some differ in more than "
        f"{subject}**: {said}. Batches are drawn equally all the same, but what rounds otherwise trains apart."
    )


def _unlike(one: Row, other: Row) -> list[str]:
    here, there = ({"program": row.content["source"], **_machine(row)} for row in (one, other))
    return [what for what in here if here[what] != there[what]]


def _machine(row: Row) -> dict[str, str]:
    environment = row.content["environment"]
    return {
        "version of torch": environment["packages"]["torch"],
        "machine": f"{environment.get('processor')}, {environment.get('device')}",
    }
