"""`lit-cnn predict`: the class of every image in a folder."""

import contextlib
import csv
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lit_cnn.cli.spelling import spelling_of
from lit_cnn.cli.verbs import CommandParser, check_output_file, store_parser, write_picture
from lit_cnn.core.addresses import is_address
from lit_cnn.core.errors import UsageError, spelt
from lit_cnn.core.file_names import as_text
from lit_cnn.core.files import replace_atomically
from lit_cnn.core.words import counted

if TYPE_CHECKING:
    from lit_cnn.evaluation.predictor import Prediction, Predictor
    from lit_cnn.evaluation.tally import Tally

UNCERTAIN = "uncertain"
"""What is written in place of a class that is not probable enough."""

_MOST_NAMES = 5  # of bad images in a warning


def predict(arguments: list[str]) -> int:
    """Classifies images, with a checkpoint or an export, into a CSV file."""
    parser = _parser()
    options = parser.parse_args(arguments)
    least = options.min_confidence
    if least is not None and not 0 <= least <= 1:
        raise UsageError("min_confidence", least, "give a probability from 0 to 1")
    places = [*options.images, *([options.folder] if options.folder is not None else [])]
    if not places or (options.images and options.folder is not None):
        parser.error("give images or folders of them, or one --folder")
    if options.model is None and options.ckpt_path is None:
        raise UsageError("source", None, "give the network: a run's id, a checkpoint's file, or an exported folder")
    for place in places:
        if not is_address(place) and not os.path.exists(place):
            raise UsageError("folder", place, "no such folder or file", "give a folder of images, or images")
    check_output_file(options.output)
    if options.sheet is not None:
        check_output_file(options.sheet, "sheet")
        if os.path.abspath(options.sheet) == os.path.abspath(options.output):
            raise UsageError("sheet", options.sheet, "is the file of `output` too", "give another file")

    from lit_cnn.cli.predict_summary import FEW, summary_of
    from lit_cnn.evaluation.tally import Tally
    from lit_cnn.exports.load import load
    from lit_cnn.tracking import resolve_store
    from lit_cnn.training.resume import checkpoint_file

    source: str | Path
    if options.model is None:
        source = checkpoint_file(options.ckpt_path, resolve_store(options.tracking_uri))
    else:
        source = options.model
    files = _files_at(places)
    predictor, tally = load(source, options.tracking_uri), Tally(least)
    found = predictor.predict_files(
        files,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        on_bad_image=options.on_bad_image,
        max_pixels=options.max_pixels,
    )
    folder = places[0] if len(places) == 1 and isinstance(places[0], Path) and places[0].is_dir() else None
    few: list[tuple[str, Prediction, str]] = []
    bad = _write(options.output, tally.over(found), folder, tally, few if len(files) <= FEW else None)
    print(summary_of(tally, predictor.class_names, few, options.output))
    if options.sheet is not None:
        _write_sheet(options.sheet, tally, predictor, options.max_pixels)
    if bad:
        names = ", ".join(bad[:_MOST_NAMES]) + (", …" if len(bad) > _MOST_NAMES else "")
        print(
            f"lit-cnn: warning: {len(bad):,} of {counted(len(files), 'image')} could not be classified: {names}; the "
            f"column error of {options.output} says why",
            file=sys.stderr,
        )
    return 1 if bad else 0


def _parser() -> CommandParser:
    parser = store_parser(
        "predict", "Classify images; writes file, class, probability and, if there is one, the error."
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--model",
        metavar="RUN",
        help="a run's id, of which 6 characters will do; a checkpoint's file; a folder that lit-cnn export wrote; "
        "models:/NAME@ALIAS or models:/NAME/VERSION",
    )
    model.add_argument("--ckpt_path", help="a checkpoint's file, or a run's id")
    parser.add_argument(
        "images",
        nargs="*",
        type=_place,
        metavar="FOLDER",
        help="searched with its sub-folders; or images, one or several; or an address, such as s3://bucket/photos",
    )
    parser.add_argument("--folder", type=_place, metavar="FOLDER", help="the same, as an option")
    parser.add_argument("--output", type=Path, default=Path("predictions.csv"), help="default: predictions.csv")
    parser.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE.png",
        help="draw the images below the name of their class, each with its probability, the least sure first: up to 16 "
        "of a class, of the 20 classes with the most images",
    )
    parser.add_argument(
        "--min_confidence",
        type=float,
        metavar="P",
        help="below this probability, 0 to 1, the class is uncertain; a column best_class names the best one",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time; default: 64")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that decode images; default: 2")
    parser.add_argument(
        "--on_bad_image",
        choices=["skip", "raise"],
        default="skip",
        help="skip: go on after an image that cannot be decoded, say why in its row, and end with exit code 1; raise: "
        "end there and write nothing; default: skip",
    )
    parser.add_argument("--max_pixels", type=int, help="images of more cannot be decoded; default: as in training")
    return parser


def _place(text: str) -> Path | str:
    return text if is_address(text) else Path(text)


def _files_at(places: Sequence[Path | str]) -> list[Path]:
    """Returns the images at and below folders or addresses, and files as they are, whatever they are called."""
    from lit_cnn.data.findings import warn_of
    from lit_cnn.data.sources import find_images, find_remote_images

    files: list[Path] = []
    for place in places:
        if isinstance(place, str):
            remote, findings = find_remote_images(place)
            warn_of(findings)
            files += cast(list[Path], remote)  # they have names, and `open_file` opens them
        elif place.is_dir():
            found, findings = find_images(place)
            warn_of(findings)
            files += found
        else:
            files.append(place)
    return files


def _write(
    output: Path,
    predictions: "Iterator[Prediction]",
    folder: Path | None,
    tally: "Tally",
    kept: "list[tuple[str, Prediction, str]] | None",
) -> list[str]:
    """Writes a row for each prediction as soon as it is there; returns the names of those that have an error.

    Args:
        output: The file. What was classified before an interruption is left beside it, and it stays as it was.
        predictions: One for each file.
        folder: What names are relative to; None leaves them as they were given.
        tally: It says whose class is not probable enough, and is `uncertain`.
        kept: Gets each image's name, prediction and error in words; None keeps none.
    """
    bad, has_limit = [], tally.min_confidence is not None
    with replace_atomically(output) as temporary, temporary.open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerow(["file", "class", "probability", *(["best_class"] if has_limit else []), "error"])
        try:
            for each in predictions:
                name, cells = _name(each, folder), _cells(each, has_limit, tally.is_sure(each))
                writer.writerow([name, *cells])
                if each.error is not None:
                    bad.append(name)
                if kept is not None:
                    kept.append((name, each, cells[-1]))
        except UsageError:
            raise
        except BaseException:  # Ctrl-C, or a worker process that was killed for its memory
            with contextlib.suppress(OSError):
                table.flush()
                partial = output.with_name(f"{output.stem}.partial{output.suffix}")
                shutil.copyfile(temporary, partial)
                print(f"lit-cnn: what was classified is in {partial}", file=sys.stderr)
            raise
    return bad


def _name(prediction: "Prediction", folder: Path | None) -> str:
    assert prediction.file is not None
    file = prediction.file.relative_to(folder) if folder is not None else prediction.file
    return as_text(file.as_posix())


def _cells(prediction: "Prediction", has_limit: bool, is_sure: bool) -> list[str]:
    """Returns class, probability, where there is a limit the best class, and the error."""
    if prediction.error is not None:
        text = "; ".join(filter(None, (prediction.error.reason, prediction.error.remedy)))
        reason = " ".join(spelt(text, spelling_of("predict")).split())
        return ["", "", *([""] if has_limit else []), reason]
    label = prediction.label if is_sure else UNCERTAIN
    return [label, f"{prediction.probability:.6f}", *([prediction.label] if has_limit else []), ""]


def _write_sheet(file: Path, tally: "Tally", predictor: "Predictor", max_pixels: int | None) -> None:
    from lit_cnn.evaluation.tally import prediction_sheet

    picture = prediction_sheet(tally, predictor.classifier, max_pixels)
    if picture is None:
        print(f"lit-cnn: warning: {file} is not written: no image was classified", file=sys.stderr)
        return
    write_picture(file, picture, "sheet")
    print(f"{file}: {picture.shape[1]} x {picture.shape[0]} px")
