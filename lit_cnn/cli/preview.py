"""`lit-cnn preview`: the picture of what a configuration's augmentation does, before anything is trained."""

from pathlib import Path

from lit_cnn.cli.precheck import precheck
from lit_cnn.cli.shorthand import expand
from lit_cnn.cli.verbs import CommandParser, check_output_file, write_picture
from lit_cnn.core.errors import UsageError, at_least


def preview(arguments: list[str]) -> int:
    """Writes the picture; takes the options of `lit-cnn fit` and three of its own."""
    parser = CommandParser(
        prog="lit-cnn preview",
        description="Write a picture of what augmentation makes of the training images: a row an image, the first "
        "column as validation sees it, then what it becomes in each epoch. The same picture for the same seed. Takes "
        "FOLDER and the options of lit-cnn fit too: --config, --data.augment, --seed_everything and so on.",
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=Path, default=Path("preview.png"), help="default: preview.png")
    parser.add_argument("--num_images", default="8", help="rows; default: 8")
    parser.add_argument("--num_draws", default="7", help="columns after the first; default: 7")
    options, of_fit = parser.parse_known_args(arguments)
    counts = {name: _count(name, getattr(options, name)) for name in ("num_images", "num_draws")}
    of_fit = expand("preview", of_fit)
    precheck(of_fit, parser.options)
    check_output_file(options.output)
    from lit_cnn.cli.lit_cli import DataCLI
    from lit_cnn.data.preview import preview as draw_preview
    from lit_cnn.training.process import hush_lightning

    hush_lightning()
    picture = draw_preview(DataCLI(of_fit).datamodule, **counts)
    write_picture(options.output, picture)
    print(f"{options.output}: {picture.shape[1]} x {picture.shape[0]} px")
    return 0


def _count(name: str, text: str) -> int:
    if not text.isdecimal():
        raise UsageError(name, text, "give a whole number of at least 1")
    at_least(1, **{name: int(text)})
    return int(text)
