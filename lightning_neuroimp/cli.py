"""Look at results files from a shell: `neuroimp show`, `neuroimp compare`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_neuroimp.display.changes import changes_summary
from lightning_neuroimp.display.frames import measurements
from lightning_neuroimp.display.summary import summary
from lightning_neuroimp.errors import NeuroimpError
from lightning_neuroimp.results.change import compare
from lightning_neuroimp.results.measurement import Results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 1 after an error, which is written to the standard error stream.

    Args:
        arguments: without the program's name; None: those of the process.
    """
    parser = argparse.ArgumentParser("neuroimp", description="Look at measurements of neuron importance.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    where = "results file (.npz), or a folder of them, whose last measurement is taken"
    show = commands.add_parser("show", help="say what a measurement found", description="Say what a measurement found.")
    show.add_argument("results", type=Path, help=where)
    show.add_argument("--all-findings", action="store_true", help="list all findings, not only the weightiest kinds")
    both = "say which neurons came and went between two measurements"
    comparison = commands.add_parser("compare", help=both, description=f"{both.capitalize()}.")
    comparison.add_argument("before", type=Path, help=where)
    comparison.add_argument("after", type=Path, help=where)
    options = parser.parse_args(arguments)
    try:
        print(_output(options))  # noqa: T201
    except BrokenPipeError:
        # whoever reads the output has had enough; nothing must be written to it when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (NeuroimpError, OSError) as error:
        print(f"neuroimp: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _output(options: argparse.Namespace) -> str:
    """Return what a command prints."""
    if options.command == "show":
        return summary(_load(options.results), all_findings=options.all_findings)
    before, after = _load(options.before), _load(options.after)
    return changes_summary(compare(before, after), f"before: {options.before} | after: {options.after}")


def _load(path: Path) -> Results:
    """Return the results in a file, or the last ones in a folder."""
    if path.is_dir():
        return list(measurements(path))[-1][1]
    return Results.load(path)
