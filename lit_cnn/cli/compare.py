"""`lit-cnn compare`: the runs of an experiment against each other, or two of them image by image."""

from pathlib import Path

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
    parser.add_argument("--batch_size", type=int, default=256, help="images per forward pass; default: 256")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that decode images; default: 2")
    parser.add_argument("--root", type=Path, help="folder of the images, if it is elsewhere than in training")
    parser.add_argument("--output", type=Path, help="folder for the report, which goes to MLflow too; default: none")
    options = parser.parse_args(arguments)
    if bool(options.runs) == bool(options.experiment):
        raise UsageError("--runs, --experiment: give one of the two: --runs ID ID or --experiment NAME")
    if options.runs and options.filter:
        raise UsageError(f"--filter {options.filter}: is for --experiment; leave it out")

    from lit_cnn.evaluation.compare import compare_experiment, compare_two
    from lit_cnn.tracking import resolve_store

    store = resolve_store(options.tracking_uri)
    shared = {name: getattr(options, name) for name in ("split", "format", "root", "output")}
    if options.experiment:
        compare_experiment(store, options.experiment, filter_string=options.filter, **shared)
    else:
        size = {name: getattr(options, name) for name in ("batch_size", "num_workers")}
        compare_two(store, options.runs, **size, **shared)
    return 0
