"""`lit-cnn predict`: the class of every image in a folder."""

import csv
from pathlib import Path

from lit_cnn.cli.verbs import store_parser
from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_names import as_text
from lit_cnn.core.files import replace_atomically
from lit_cnn.core.words import counted

UNCERTAIN = "uncertain"
"""What is written in place of a class that is not probable enough."""


def predict(arguments: list[str]) -> int:
    """Classifies every image of a folder, with a checkpoint or an export, into a CSV file."""
    parser = store_parser("predict", "Classify every image in a folder; writes file, class, probability.")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--ckpt_path", help="a checkpoint's file or runs:/RUN_ID")
    model.add_argument("--model", help="a folder that lit-cnn export wrote, models:/NAME@ALIAS or models:/NAME/VERSION")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="searched with its sub-folders")
    place.add_argument("--folder", dest="named_folder", type=Path, metavar="FOLDER", help="the same, as an option")
    parser.add_argument("--output", type=Path, default=Path("predictions.csv"), help="default: predictions.csv")
    parser.add_argument(
        "--min_confidence",
        type=float,
        metavar="P",
        help="below this probability, 0 to 1, the class is uncertain; a column best_class names the best one",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time; default: 64")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that decode images; default: 2")
    options = parser.parse_args(arguments)
    least = options.min_confidence
    if least is not None and not 0 <= least <= 1:
        raise UsageError("min_confidence", least, "give a probability from 0 to 1")

    from lit_cnn.exports.load import load
    from lit_cnn.tracking import resolve_store
    from lit_cnn.training.resume import checkpoint_file

    if options.model is None:
        source = checkpoint_file(options.ckpt_path, resolve_store(options.tracking_uri))
    else:  # a path is no run, whatever it is called
        source = options.model if options.model.startswith("models:/") else Path(options.model)
    folder = options.folder or options.named_folder
    predictor = load(source, options.tracking_uri)
    found = predictor.predict_folder(folder, batch_size=options.batch_size, num_workers=options.num_workers)
    header = ["file", "class", "probability", *(["best_class"] if least is not None else [])]
    rows = []
    for each in found:
        assert each.file is not None
        label = UNCERTAIN if least is not None and each.probability < least else each.label
        rows.append([as_text(each.file.relative_to(folder).as_posix()), label, f"{each.probability:.6f}", each.label])
    try:
        with (
            replace_atomically(options.output) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as table,
        ):
            csv.writer(table).writerows([header, *(row[: len(header)] for row in rows)])
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise UsageError("output", options.output, reason, "give another file") from error
    print(f"{counted(len(rows), 'image')} classified: {options.output}")
    return 0
