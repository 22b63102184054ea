"""What the study's numbers cannot say, and what is not measured yet."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from medvisionllama.experiments.pretraining import LORAS, MIDDLES, Place, Scope, gaps_of, told_apart
from medvisionllama.experiments.pretraining_contrasts import Measured
from medvisionllama.experiments.pretraining_wording import data_of, network_of
from medvisionllama.experiments.retold import GATED
from medvisionllama.reports.wording import counted


def limits(measured: Measured) -> str:
    """What the numbers do not say, as a list."""
    blocks = sorted({place.block for place in measured if place.block})
    sizes = [_size_of_block(block, measured) for block in blocks]
    tasks = sorted({place.task for place in measured})
    seeds = sorted({seed for rows in measured.values() for seed in rows})
    return "\n".join(
        [
            f"- It speaks of {' and '.join(sizes) or 'no block yet'}, on {' and '.join(tasks) or 'no task yet'}, at "
            "this budget."
            + ("" if GATED in blocks else f" Small blocks cannot answer for {GATED}; the command for it is below."),
            f"- {_few(len(seeds))} One split: another would move all means, and the differences by an unknown amount.",
            "- No detection is no proof of no effect: read the interval for the effects that remain possible.",
            *_adapters(measured),
            "- Validation and test part are scored with the same trainings: they are no two studies.",
            "- Longer training, other tasks, larger images and other places for the block are not covered.",
        ]
    )


def _adapters(measured: Measured) -> list[str]:
    """That what trains inside a frozen block may repair a destroyed one, but of blocks that were measured without."""
    frozen = [place for place in measured if place.middle not in ("none", "identity", "trained")]
    without = {place.block for place in frozen if place.lora == "none"}
    blocks = sorted({place.block for place in frozen} - without)
    if not blocks:
        return []
    sizes = [block + _size_of_adapters(block, measured) for block in blocks]
    whose = " and ".join(sizes)
    subject, they = (f"block of {whose} holds", "it") if len(blocks) == 1 else (f"blocks of {whose} hold", "them")
    return [
        f"- The frozen {subject} adapters that train, as the papers' do. They may repair a destroyed block, or adapt a "
        f"pre-trained one: of {they} nothing was measured without."
    ]


def _size_of_adapters(block: str, measured: Measured) -> str:
    """Such as `` (12 numbers)``: all that train less those that do without it; empty where that is not known."""
    for place, rows in measured.items():
        bare = measured.get(place.with_middle("identity"), {})
        shared = set(rows) & set(bare)
        if place.block == block and place.middle not in ("none", "identity", "trained") and shared:
            seed = min(shared)
            trained, without = (of[seed].content["parameters"]["trainable"] for of in (rows, bare))
            return f" ({trained - without:,} numbers)"
    return ""


def _few(seeds: int) -> str:
    """What so many seeds can say of other trainings."""
    if seeds < 2:
        return f"{counted(seeds, 'seed')}: nothing is known of what another training would give."
    return f"{counted(seeds, 'seed')}: an interval over so few is wide, and that is its message."


def _size_of_block(block: str, measured: Measured) -> str:
    """How large a block is: all that is frozen around it, less what is frozen in the same network without it."""
    told = block
    for place, rows in measured.items():
        held = [row for row in rows.values() if row.content["identity"] and row.content["parameters"]["frozen"]]
        if place.block != block or not held:
            continue
        frozen = int(held[0].content["parameters"]["frozen"])
        without = list(measured.get(place.with_middle("identity"), {}).values())
        if without or place.lora == "none":  # mappers without LoRA have nothing frozen
            bare = without[0].content["parameters"]["frozen"] if without else 0
            return f"{block} (a block of {frozen - bare:,} parameters)"
        told = f"{block} ({frozen:,} frozen parameters, the block and its mappers' fixed start)"
    return told


def missing(measured: Measured, scope: Scope, commands: Sequence[str]) -> str:
    """Which cells are left, what of the design was not planned, and the commands that measure them."""
    gaps, added = gaps_of(measured, scope.places), scope.added
    apart = told_apart([*{**measured, **scope.places}])
    total, left = total_of(scope.planned), total_of(gaps_of(measured, scope.planned))
    text = [
        f"{total - left} of {total} planned cells are measured." if left else f"All {total} planned cells are measured."
    ]
    if added:
        text[0] += f" Beyond the plan {total_of(added) - total_of(gaps_of(measured, added))} of {total_of(added)} are."
    if gaps:
        head = ["| network | data | middle | seeds left |", "|" + "---|" * 4]
        text.append(
            "\n".join(
                [
                    *head,
                    *(
                        f"| {network_of(p)} | {data_of(p, apart[p])} | {p.middle} | {', '.join(map(str, seeds))} |"
                        for p, seeds in sorted(gaps.items())
                    ),
                ]
            )
        )
    text += _not_planned([*measured, *scope.places])
    finish = "These commands measure what is missing and write this page anew" if gaps else "Made by these commands"
    text.append(f"{finish} (finished cells are skipped):")
    text.append("```\n" + "\n".join(commands) + "\n```")
    sources = {row.content["source"] for of_place in measured.values() for row in of_place.values()}
    if gaps and len(sources) == 1:
        text.append(
            f"The rows here are of commit `{sources.pop()}`. Trainings of another one that rounds otherwise drift "
            "apart from their pairs: measure with that commit, then write the page with the present one (`--limit 0`)."
        )
    return "\n\n".join(text)


def _not_planned(places: Sequence[Place]) -> list[str]:
    """What the design has, and this study neither measured nor plans."""
    middles = [middle for middle in MIDDLES if middle not in {place.middle for place in places}]
    loras = [lora for lora in LORAS if lora not in {place.lora for place in places if place.lora}]
    options = [f"`--middles {' '.join(middles)}`"] if middles else []
    options += [f"`--lora {' '.join(loras)}`"] if loras else []
    return [f"The design has more that is neither planned here nor measured: {', '.join(options)}."] if options else []


def total_of(places: Mapping[Place, Collection[int]]) -> int:
    """How many cells these are."""
    return sum(len(set(seeds)) for seeds in places.values())
