"""`lit-cnn compare`: the runs of an experiment against each other, or two of them image by image."""

from pathlib import Path

from lit_cnn.cli.loading import add_loading_options, loading_of
from lit_cnn.cli.output import print_result, warn_not_sent
from lit_cnn.cli.verbs import store_parser
from lit_cnn.core.errors import UsageError


def compare(arguments: list[str]) -> int:
    """Prints a leaderboard over an experiment's runs, or what one of two runs wins over the other."""
    parser = store_parser(
        "compare",
        "Compare an experiment's runs by configuration, over their seeds and, where logits are stored, image by image; "
        "or two runs image by image.",
    )
    parser.add_argument("--experiment", help="a leaderboard of this experiment's finished runs")
    parser.add_argument(
        "--filter", default="", help="which of its runs, in MLflow's words: \"tags.arch = 'lit/lenet5'\""
    )
    parser.add_argument("--runs", nargs=2, metavar="ID", help="two MLflow run ids (or our keys): won and lost images")
    parser.add_argument("--split", choices=["val", "test"], default="test", help="default: test")
    parser.add_argument("--format", choices=["table", "csv", "json"], default="table", help="default: table")
    add_loading_options(parser)
    parser.add_argument("--output", type=Path, help="folder for the report, which goes to MLflow too; default: none")
    options = parser.parse_args(arguments)
    if bool(options.runs) == bool(options.experiment):  # before anything heavy is imported
        raise UsageError(reason="give one of the two: `runs=ID ID` or `experiment=NAME`")

    from lit_cnn.evaluation.compare import compare as compare_runs

    found = compare_runs(
        options.runs,
        experiment=options.experiment,
        filter=options.filter,
        split=options.split,
        loading=loading_of(options),
        output=options.output,
        tracking_uri=options.tracking_uri,
    )
    print_result(found, options.format)
    if options.output is not None and options.format == "table":
        print(f"\nReport: {options.output / 'report.html'}")
    if found.run is not None and not found.run.is_sent:
        warn_not_sent()
    return 0
