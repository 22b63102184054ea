"""``medvisionllama blocks list / show / fetch``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medvisionllama.commands import DONE
from medvisionllama.commands.options import add_command, teller_of
from medvisionllama.commands.printing import print_object, print_table


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    parser = add_command(commands, common, "blocks", "List, show or fetch language blocks.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = add_command(actions, common, "list", "Every language model known by name.")
    listing.set_defaults(run=_blocks_list)
    show = add_command(actions, common, "show", "All that is known of one.")
    show.add_argument("name", help="a name of the list, a hub id, or a folder")
    show.set_defaults(run=_blocks_show)
    fetch = add_command(actions, common, "fetch", "Bring single layers here, by their own bytes alone.")
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
    print_table(head, rows)
    return DONE


def _blocks_show(options: argparse.Namespace) -> int:
    from medvisionllama.language.listing import show_block

    print_object(show_block(options.name, cache=options.cache), options.json)
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
        progress=teller_of().bytes,
    )
    results = [asdict(result) for result in found]
    if options.json and len(results) > 1:
        print_object({"layers": results}, options.json)
    else:
        for result in results:
            print_object(result, options.json)
    return DONE
