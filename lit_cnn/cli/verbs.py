"""The commands describe, ui and sync, and what several commands share."""

import argparse
import difflib
import errno
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lit_cnn.cli.output import console
from lit_cnn.core.errors import UsageError
from lit_cnn.core.words import counted

if TYPE_CHECKING:
    import numpy as np

    from lit_cnn.models.describe import Description


class CommandParser(argparse.ArgumentParser):
    """argparse's parser; a mistake is one line instead of the usage."""

    def error(self, message: str) -> NoReturn:
        """Raises a UsageError that names the option that may have been meant, or points to the command's --help."""
        unknown = re.match(r"unrecognized arguments: (?:.*? )?(-\S*)", message)
        given = unknown[1].partition("=")[0].replace("-", "_").replace("__", "--", 1) if unknown else ""
        near = difflib.get_close_matches(given, self.options, 2, 0.6) if given else []
        remedy = f"did you mean {' or '.join(near)}?" if near else f"see {self.prog} --help"
        if not near and "--runs" in self.options and re.match(r"unrecognized arguments: [^-]", message):
            remedy = "runs are named after --runs"
        raise UsageError(None, None, message, remedy)

    @property
    def options(self) -> list[str]:
        """The options, as they are written."""
        return [name for name in self._option_string_actions if name.startswith("--")]


def seconds_of(text: str) -> float:
    """Returns the seconds that a text such as `90s`, `60m` or `2h` says; a number alone is minutes.

    Raises:
        ArgumentTypeError: If it says none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|)", text.strip())
    seconds = float(found[1]) * {"s": 1, "m": 60, "h": 3600, "": 60}[found[2]] if found else 0.0
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"{text}: give a time such as 90s, 60m or 2h")
    return seconds


def count_of(text: str) -> int:
    """Returns a whole number of at least 1.

    Raises:
        ArgumentTypeError: If it is none.
    """
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number of at least 1")
    return int(text)


def describe(arguments: list[str]) -> int:
    """`lit-cnn describe`: shows a network layer by layer with its paper's figures; draws and downloads no weights."""
    parser = CommandParser(
        prog="lit-cnn describe",
        description="Show a network layer by layer: output shapes, parameters, multiply-adds, activation memory, and "
        "its paper's figures. No weights are drawn or downloaded.",
    )
    parser.add_argument("arch", metavar="ARCH", help="a network of ours or of timm: lenet5, resnet50")
    parser.add_argument("--image_size", type=int, help="pixels; default: what the network was made for")
    parser.add_argument("--in_channels", type=int, help="channels of the image; default: the network's own")
    parser.add_argument("--num_classes", type=int, help="default: 1000 for images of 200 px or more, else 10")
    parser.add_argument("--arch_options", default="{}", help='ARCH\'s further options in YAML: "{drop_rate: 0.5}"')
    view = parser.add_mutually_exclusive_group()
    view.add_argument(
        "--compare", metavar="ARCH2", help="compare its totals with those of ARCH2, which takes no --arch_options"
    )
    view.add_argument("--stages", action="store_true", help="one line for each stage instead of each layer")
    parser.add_argument("--format", choices=["table", "json"], default="table", help="default: table")
    options = parser.parse_args(arguments)
    size = {name: getattr(options, name) for name in ("image_size", "in_channels", "num_classes")}
    further = _yaml_options(options.arch_options)
    network = _described("arch", options.arch, stages=options.stages, **size, **further)
    other = _described("compare", options.compare, **size) if options.compare else None

    from lit_cnn.cli.describe_table import render, render_comparison

    if options.format == "json":
        both = network.to_dict() if other is None else network.to_dict() | {"compare": other.to_dict()}
        print(json.dumps(both, indent=2))
    elif other is not None:
        render_comparison(network, other, console())
    else:
        render(network, console())
    return 0


def _described(option_of_arch: str, arch: str, **options: Any) -> "Description":
    """Describes an architecture; a mistake in its name is one in the option that gave it."""
    from lit_cnn.models.describe import describe as describe_network

    try:
        return describe_network(arch, **options)
    except UsageError as error:
        option = option_of_arch if error.option == "arch" else error.option
        raise UsageError(option, error.value, error.reason, error.remedy) from error


def _yaml_options(text: str) -> dict[str, Any]:
    """Returns an architecture's options from a YAML mapping."""
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UsageError("arch_options", text, 'give names and values in YAML: "{drop_rate: 0.5}"')
    for name in ("arch", "image_size", "in_channels", "num_classes", "pretrained", "stages"):
        if name in found:
            raise UsageError("arch_options", text, f"{name} is not an option of an architecture", "see --help")
    return found


def ui(arguments: list[str]) -> int:
    """`lit-cnn ui`: opens MLflow's pages on this machine only, and prints the link that shows the runs."""
    parser = store_parser("ui", "Open the MLflow UI on 127.0.0.1 with lit_cnn's store, and print the link to look at.")
    parser.add_argument("--experiment", help="the experiment to link to; default: every one with a run")
    parser.add_argument("--port", type=int, default=5000, help="default: 5000")
    options = parser.parse_args(arguments)

    from lit_cnn.tracking import resolve_store
    from lit_cnn.tracking.ui import serve_ui

    serve_ui(resolve_store(options.tracking_uri), options.experiment, options.port)
    return 0


def sync(arguments: list[str]) -> int:
    """`lit-cnn sync`: sends to MLflow what earlier runs could not."""
    parser = store_parser("sync", "Send to MLflow what earlier runs could not: metrics, files, how they ended.")
    options = parser.parse_args(arguments)

    from lit_cnn.tracking import resolve_store
    from lit_cnn.tracking.sender import sync as send_all

    summary = send_all(resolve_store(options.tracking_uri))
    print(
        f"{counted(len(summary.sent), 'run')} sent, {len(summary.running)} still running, {len(summary.failed)} failed"
    )
    for key, reason in summary.failed.items():
        print(f"{key}: {reason}", file=sys.stderr)
    for store, count in summary.elsewhere.items():
        print(f"{counted(count, 'run')} to be sent to {store}: lit-cnn sync --tracking_uri …", file=sys.stderr)
    return 1 if summary.failed else 0


def store_parser(command: str, description: str) -> CommandParser:
    """Returns the parser of a command that reads an MLflow store."""
    parser = CommandParser(prog=f"lit-cnn {command}", description=description)
    parser.add_argument("--tracking_uri", help="MLflow store; default: $MLFLOW_TRACKING_URI, else mlruns/mlflow.db")
    return parser


def check_output_file(file: Path, option: str = "output") -> None:
    """Refuses what cannot become a file, before the work, and without leaving anything there.

    Args:
        file: The file.
        option: Name of the option that gave it.

    Raises:
        UsageError: If it is a folder, or there is no right to write there.
    """
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=next(folder for folder in file.absolute().parents if folder.exists())):
            pass
    except OSError as error:
        raise _unwritable(file, error, option) from error


def write_picture(file: Path, picture: "np.ndarray", option: str = "output") -> None:
    """Writes an `(H, W, 3)` uint8 picture as PNG.

    Args:
        file: Where to.
        picture: The pixels.
        option: Name of the option that gave the file.

    Raises:
        UsageError: If it cannot be written.
    """
    from lit_cnn.data.preview import write_png

    try:
        write_png(file, picture)
    except OSError as error:
        raise _unwritable(file, error, option) from error


def _unwritable(file: Path, error: OSError, option: str) -> UsageError:
    return UsageError(option, file, f"cannot be written ({error.strerror})", "give another file")
