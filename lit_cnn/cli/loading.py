"""The options of commands that run networks over images."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_cnn.evaluation.predict import Loading


def add_loading_options(parser: argparse.ArgumentParser, batch_size: int = 256) -> None:
    """Adds `--batch_size`, `--num_workers` and `--root`.

    Args:
        parser: Of the command.
        batch_size: The default.
    """
    parser.add_argument(
        "--batch_size", type=int, default=batch_size, help=f"images per forward pass; default: {batch_size}"
    )
    parser.add_argument("--num_workers", type=int, default=2, help="processes that decode images; default: 2")
    parser.add_argument("--root", help="folder of the images, if it is elsewhere than in training")


def loading_of(options: argparse.Namespace) -> "Loading":
    """Returns what those options say."""
    from lit_cnn.evaluation.predict import Loading

    return Loading(options.batch_size, options.num_workers, options.root)
