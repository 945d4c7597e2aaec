"""`lit-cnn ensemble`: tracked runs over one and many crops, alone and combined."""

from pathlib import Path

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
        "--beside",
        nargs="+",
        metavar="ID",
        default=[],
        help="runs with rows of their own and no part in the ensemble: a soup, a student; of ID/snapshots the mean",
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
    parser.add_argument("--batch_size", type=int, default=256, help="images per forward pass; default: 256")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that decode images; default: 2")
    parser.add_argument("--root", type=Path, help="folder of the images, if it is elsewhere than in training")
    parser.add_argument(
        "--output", type=Path, help="folder for the report, with activation maps; default: only in MLflow"
    )
    options = parser.parse_args(arguments)

    from lit_cnn.evaluation.ensemble import ensemble_runs
    from lit_cnn.tracking import resolve_store

    ensemble_runs(
        resolve_store(options.tracking_uri),
        run_ids=options.runs,
        experiment=options.experiment,
        filter_string=options.filter,
        top_k=options.top_k,
        beside=options.beside,
        views=options.views,
        limit_144=options.limit_144,
        combine=options.combine,
        weights=options.weights,
        calibration=options.calibration,
        latency=options.latency,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        root=options.root,
        output=options.output,
    )
    return 0
