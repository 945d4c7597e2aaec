"""`lit-cnn report`: what a run that has ended came to, shown again."""

import sys
from pathlib import Path

from lit_cnn.cli.loading import add_loading_options, loading_of
from lit_cnn.cli.output import from_here, print_result
from lit_cnn.cli.verbs import store_parser


def report(arguments: list[str]) -> int:
    """Prints what a run came to and where its page is, which is made anew where it is not there."""
    parser = store_parser(
        "report",
        "Show again what a run came to that has ended: its sentences, its numbers, the page that is stored with it. "
        "A page that is not there, or lacks something, is made anew from stored logits and the images.",
    )
    parser.add_argument(
        "run", metavar="RUN", help="a run's id, of fit with or without --folds or --seeds, ensemble, compare, tune"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="folder for the page and its files; default: with the run"
    )
    parser.add_argument("--format", choices=["table", "csv", "json"], default="table", help="default: table")
    add_loading_options(parser)
    options = parser.parse_args(arguments)

    from lit_cnn.evaluation.report import report as report_of

    found = report_of(
        options.run, output=options.output, loading=loading_of(options), tracking_uri=options.tracking_uri
    )
    print_result(found, options.format)
    if found.missing:
        print(f"lit-cnn: warning: the report lacks {', '.join(found.missing)}", file=sys.stderr)
    if options.format == "table":
        print(f"\nReport: {from_here(found.where)}{' (made anew)' if found.is_new else ''}")
        print(f"run {found.id}")
    return 0
