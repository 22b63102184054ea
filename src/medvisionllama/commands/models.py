"""``medvisionllama models list / show``."""

from __future__ import annotations

import argparse
from typing import Any

from medvisionllama.commands import DONE
from medvisionllama.commands.options import add_command
from medvisionllama.commands.printing import print_object, print_table
from medvisionllama.errors import InputError


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    parser = add_command(commands, common, "models", "List networks, or show what one costs.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = add_command(actions, common, "list", "Every network known by name.")
    listing.set_defaults(run=_models_list)
    show = add_command(actions, common, "show", "Parameters, trainable and frozen, and counted operations.")
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
        print_table(("name", "what it is"), list(DESCRIPTIONS.items()))
    return DONE


def _models_show(options: argparse.Namespace) -> int:
    from medvisionllama.models.costs import cost_of
    from medvisionllama.models.medvisionllama import ModelConfig
    from medvisionllama.models.zoo import network_named, with_block

    config = network_named(options.name)
    if options.block:
        if not isinstance(config, ModelConfig):
            raise InputError(f"{options.name} has no language block", mend="Leave out --block.")
        config = with_block(config, options.block)
    try:
        i, j, k = (int(size) for size in options.input.split(","))
        cost = cost_of(config, (i, j, k))
    except InputError:
        raise  # it says itself what is wrong: a block of unknown shape is no fault of --input
    except ValueError as error:
        raise InputError(f"--input {options.input}", got=str(error), expected="three sizes such as 64,64,40") from error
    print_object({"name": options.name} | cost.to_dict(), options.json)
    return DONE
