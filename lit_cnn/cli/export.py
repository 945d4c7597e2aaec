"""`lit-cnn export`: a model for other programs."""

from pathlib import Path

from lit_cnn.cli.loading import add_loading_options, loading_of
from lit_cnn.cli.verbs import store_parser


def export(arguments: list[str]) -> int:
    """Writes a tracked run, or an ensemble of several, into a folder that needs no more of lit_cnn."""
    parser = store_parser(
        "export",
        "Write a tracked run, or an ensemble, into a folder: preprocessing, class names, temperature, and a network "
        "that takes uint8 images and gives probabilities. It is compared with the stored predictions first.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a training run's id (of fit --folds: the mean of its networks), several for the mean of their "
        "probabilities, or that of a lit-cnn ensemble",
    )
    parser.add_argument("--format", required=True, choices=["pyfunc", "onnx", "openvino", "torch"])
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an export that is there")
    parser.add_argument("--views", type=int, default=1, help="1, or 2 with the mirror image; default: 1")
    parser.add_argument("--register", metavar="NAME", help="make a pyfunc a version of this model in MLflow's registry")
    parser.add_argument("--alias", help="what that version is called from now on: champion")
    add_loading_options(parser, batch_size=64)
    options = parser.parse_args(arguments)

    from lit_cnn.exports import export as export_model

    card = export_model(
        options.runs,
        options.output,
        options.format,
        views=options.views,
        overwrite=options.overwrite,
        register=options.register,
        alias=options.alias,
        loading=loading_of(options),
        tracking_uri=options.tracking_uri,
    )
    if card.registered:
        print(*card.registered)
    parity = card.parity
    ties = f" but for {parity['near_ties']} near ties" if parity["near_ties"] else ""
    print(
        f"{options.output}: the stored class on all {parity['images']} test images{ties}, probabilities within "
        f"{parity['largest_difference']:.1g}"
    )
    return 0
