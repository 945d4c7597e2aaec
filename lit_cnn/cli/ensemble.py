"""`lit-cnn ensemble`: tracked runs over one and many crops, alone and combined."""

import re
import sys
from pathlib import Path

from lit_cnn.cli.loading import add_loading_options, loading_of
from lit_cnn.cli.output import print_result, warn_not_sent
from lit_cnn.cli.verbs import store_parser


def ensemble(arguments: list[str]) -> int:
    """`lit-cnn ensemble`: combines tracked runs over crops and compares, in a table, pictures and an MLflow run."""
    parser = store_parser(
        "ensemble", "Combine the best checkpoints of tracked runs over one and many crops, and compare."
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        metavar="ID",
        help="MLflow run ids (or our keys) of the members; ID/2 is a run's second snapshot, ID/snapshots are all",
    )
    parser.add_argument("--experiment", help="take the members from this experiment")
    parser.add_argument(
        "--filter", default="", help="which of its runs, in MLflow's words: \"tags.arch = 'lit/lenet5'\""
    )
    parser.add_argument("--top_k", type=int, help="that many of them, best on val first; default: all")
    parser.add_argument(
        "--baselines",
        nargs="+",
        metavar="ID",
        default=[],
        help="runs that are compared with the ensemble, but not in it: a soup, a student; of ID/snapshots the mean",
    )
    parser.add_argument("--views", nargs="+", type=int, default=[1, 10], help="crops per image; default: 1 10")
    parser.add_argument(
        "--limit_144", type=int, help="with 144 crops use at most that many images, stratified; default: all"
    )
    parser.add_argument(
        "--combine", default="mean", help="mean (of probabilities), logits (their mean), vote or greedy; default: mean"
    )
    parser.add_argument("--weights", nargs="+", type=float, help="one for each of --runs; default: equal weights")
    parser.add_argument("--calibration", action="store_true", help="fit a temperature for each row on val")
    parser.add_argument("--latency", action="store_true", help="time the networks' forward passes: some seconds")
    parser.add_argument("--format", choices=["table", "csv", "json"], default="table", help="default: table")
    add_loading_options(parser)
    parser.add_argument(
        "--output", type=Path, help="folder for the report, with activation maps; default: only in MLflow"
    )
    options = parser.parse_args(_with_new_names(arguments))

    from lit_cnn.evaluation.ensemble import ensemble as evaluate

    table = evaluate(
        options.runs,
        experiment=options.experiment,
        filter=options.filter,
        top_k=options.top_k,
        baselines=options.baselines,
        views=options.views,
        limit_144=options.limit_144,
        combine=options.combine,
        weights=options.weights,
        calibration=options.calibration,
        latency=options.latency,
        loading=loading_of(options),
        output=options.output,
        tracking_uri=options.tracking_uri,
    )
    print_result(table, options.format)
    assert table.run is not None
    if options.format == "table":
        if options.output is not None:
            print(f"\nReport: {options.output / 'report.html'}")
        print(f"run {table.run.id} in experiment {table.experiment}; see it with: lit-cnn ui")
    if not table.run.is_sent:
        warn_not_sent()
    return 0


def _with_new_names(arguments: list[str]) -> list[str]:
    if not any(argument.partition("=")[0] == "--beside" for argument in arguments):
        return arguments
    print("lit-cnn: --beside is now --baselines; the old name goes with 0.4", file=sys.stderr)
    return [re.sub("^--beside(?==|$)", "--baselines", argument) for argument in arguments]
