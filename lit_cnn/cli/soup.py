"""`lit-cnn soup`: one network whose weights are the average of several."""

from lit_cnn.cli.loading import add_loading_options, loading_of
from lit_cnn.cli.output import warn_not_sent
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
    add_loading_options(parser)
    options = parser.parse_args(arguments)

    from lit_cnn.evaluation.soup import soup as make_soup

    made = make_soup(options.runs, loading=loading_of(options), tracking_uri=options.tracking_uri)
    print(made)
    if not made.is_sent:
        warn_not_sent()
    return 0
