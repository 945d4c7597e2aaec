"""`lit-cnn soup`: one network whose weights are the average of several."""

from pathlib import Path

from lit_cnn.cli.verbs import store_parser


def soup(arguments: list[str]) -> int:
    """`lit-cnn soup`: averages weights greedily by val, where networks lie in one basin, into a run of its own."""
    parser = store_parser(
        "soup",
        "Average the weights of tracked runs of one architecture, one after the other as long as val gains; those in "
        "another basin are left out by name. What comes of it is a run with a checkpoint.",
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        metavar="ID",
        required=True,
        help="MLflow run ids (or our keys); ID/2 is a run's second snapshot, ID/snapshots are all of them",
    )
    parser.add_argument("--num_workers", type=int, default=2, help="processes that decode images; default: 2")
    parser.add_argument("--root", type=Path, help="folder of the images, if it is elsewhere than in training")
    options = parser.parse_args(arguments)

    from lit_cnn.evaluation.soup import make_soup
    from lit_cnn.tracking import resolve_store

    make_soup(resolve_store(options.tracking_uri), options.runs, options.num_workers, options.root)
    return 0
