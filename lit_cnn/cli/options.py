"""The options of fit, validate and test that are neither the model's, the data's nor the trainer's."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningArgumentParser

LINKED_FROM_DATA = (
    "num_classes",
    "in_channels",
    "image_size",
    "class_names",
    "class_counts",
    "mean",
    "std",
    "interpolation",
)
"""What the model takes from the data module, and from no option of its own."""


def add_run_options(parser: "LightningArgumentParser", subcommand: str) -> None:
    """Adds them.

    Args:
        parser: Of the subcommand.
        subcommand: `fit`, `validate` or `test`.
    """
    parser.add_argument(
        "--resume", type=Literal["auto"] | None, default=None, help="auto: go on with the unfinished run, if any"
    )
    parser.add_argument("--monitor", type=str, default="val/acc", help="metric that says which epoch is best")
    parser.add_argument("--monitor_mode", type=Literal["max", "min"], default="max", help="max or min is best")
    parser.add_argument("--checkpoint_seconds", type=float, default=60.0, help="seconds between last checkpoints")
    parser.add_argument(
        "--on_full_disk", type=Literal["stop", "continue"], default="stop", help="continue: train on, wait for room"
    )
    parser.add_argument(
        "--ema_decay",
        type=float | None,
        default=None,
        help="validate, keep and test a moving average of the weights",
    )
    parser.add_argument(
        "--swa_start",
        type=int | None,
        default=None,
        help="the same with the equal average of the weights at the ends of all epochs from this one (1, 2, …) on",
    )
    parser.add_argument("--test_after_fit", type=bool, default=True, help="test the best checkpoint at the end")
    # Taken out of the arguments before they are parsed (take_seeds): the parser only has to tell of it.
    if subcommand == "fit":
        parser.epilog = (
            "--seeds N [N ...]: train once with each seed, under one run with their mean and standard deviation"
        )
    parser.add_argument(
        "--find_batch_size", type=bool, default=False, help="only say the largest --data.batch_size that fits"
    )
    parser.add_argument("--log_preview", type=bool, default=False, help="keep a picture of the augmentation")
    parser.add_argument("--recipe", type=str | None, default=None, help="a word that ends the run's name")
    parser.add_argument("--experiment", type=str | None, default=None, help="MLflow experiment; default: the data")
    parser.add_argument("--track", type=bool, default=True, help="false: no MLflow run and no checkpoints")
    parser.add_argument("--tracking_uri", type=str | None, default=None, help="MLflow store; default: mlruns/")
