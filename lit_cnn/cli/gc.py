"""`lit-cnn gc`: lists what takes room on the disk and no run needs; removes it when told to."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_cnn.cli.output import console
from lit_cnn.cli.verbs import store_parser
from lit_cnn.core.files import size_in_words

if TYPE_CHECKING:
    from lit_cnn.tracking.garbage import Garbage


def gc(arguments: list[str]) -> int:
    """Lists or removes; exit code 1 if something could not be removed."""
    parser = store_parser(
        "gc",
        "List what takes room and no run needs: what killed processes left half written, what is kept here "
        "of runs deleted in MLflow, second copies of finished runs' checkpoints, and logits and caches that were not "
        "used for a while (they are made again when needed). Checkpoints and logits in MLflow are never touched.",
    )
    parser.add_argument("--delete", action="store_true", help="remove what is listed; default: only list it")
    parser.add_argument(
        "--older_than", type=_days, default=30.0, metavar="DAYS", help="logits and caches unused for that long; 30"
    )
    parser.add_argument("--format", choices=["table", "json"], default="table", help="default: table")
    options = parser.parse_args(arguments)

    from lit_cnn.tracking import resolve_store
    from lit_cnn.tracking.garbage import find_garbage, remove_garbage

    found = find_garbage(resolve_store(options.tracking_uri), options.older_than)
    failures = remove_garbage(found) if options.delete else []
    if options.format == "json":
        rows = [{**vars(item), "path": str(item.path)} for item in found]
        print(json.dumps({"garbage": rows, "deleted": options.delete, "failures": failures}, indent=2))
    else:
        _print_table(found, options.delete)
    for line in failures:
        print(f"lit-cnn: {line}", file=sys.stderr)
    return 1 if failures else 0


def _print_table(found: Sequence["Garbage"], deleted: bool) -> None:
    from rich.table import Table

    if not found:
        print("nothing to remove")
        return
    table = Table("what", "where", "number", "size", "unused, days")
    for kind in dict.fromkeys(item.kind for item in found):
        items = [item for item in found if item.kind == kind]
        places = {str(item.path.parent) for item in items}
        oldest, newest = max(item.age for item in items), min(item.age for item in items)
        size = size_in_words(sum(item.size for item in items))
        where = places.pop() if len(places) == 1 else f"{len(places)} folders"
        table.add_row(kind, where, str(len(items)), size, f"{newest:.0f} to {oldest:.0f}")
    console().print(table)
    total = size_in_words(sum(item.size for item in found))
    print(f"{total} removed" if deleted else f"{total} in all; nothing was removed: lit-cnn gc --delete removes it")


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: give a number of days, 0 or more")
    return days
