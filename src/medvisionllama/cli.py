"""The command line: parses and delegates to ``commands/``, each of which imports what it needs when it runs."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import traceback
from collections.abc import Sequence

from medvisionllama import __version__
from medvisionllama.commands import (
    BAD_INPUT,
    DONE,
    INTERRUPTED,
    benchmark,
    blocks,
    check,
    compare,
    demo,
    download,
    evaluate,
    explain,
    figures,
    models,
    plan,
    predict,
    report,
    reproduce,
    splits,
    train,
)
from medvisionllama.errors import InputError

EPILOG = """\
Research software, not a medical device.
Exit codes: 0 done; 1 the work found faults; 2 bad usage or input; 130 interrupted (a run can be resumed).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    plain, dotted = _apart(given)
    options, unknown = parser.parse_known_args(plain)
    dotted += unknown
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


def _apart(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words argparse knows, and the dotted settings with their values, which it would take for a command's own."""
    plain, dotted, words = [], [], iter(given)
    for word in words:
        if word.startswith(("--model.", "--recipe.")):
            dotted += [word] if "=" in word else [word, *itertools.islice(words, 1)]
        else:
            plain.append(word)
    return plain, dotted


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
    for command in (
        demo,
        download,
        check,
        plan,
        train,
        predict,
        explain,
        evaluate,
        compare,
        report,
        figures,
        blocks,
        models,
        reproduce,
        splits,
        benchmark,
    ):
        command.add(commands, common)
    return parser


if __name__ == "__main__":
    sys.exit(main())
