"""`lit-cnn predict`: the class of every image in a folder."""

from pathlib import Path

from lit_cnn.cli.verbs import store_parser
from lit_cnn.core.errors import UsageError
from lit_cnn.core.words import counted


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
    if options.min_confidence is not None and not 0 <= options.min_confidence <= 1:
        raise UsageError(f"--min_confidence {options.min_confidence:g}: give a probability from 0 to 1")

    from lit_cnn.evaluation.folder_predictions import checkpoint_classifier, predict_folder
    from lit_cnn.export import load_export
    from lit_cnn.tracking import resolve_store
    from lit_cnn.training.resume import checkpoint_file

    store = resolve_store(options.tracking_uri)
    if options.model is not None:
        classifier = load_export(options.model, store)
    else:
        classifier = checkpoint_classifier(checkpoint_file(options.ckpt_path, store))
    folder = options.folder or options.named_folder
    how = (options.batch_size, options.num_workers, options.min_confidence)
    num_images = predict_folder(classifier, folder, options.output, *how)
    print(f"{counted(num_images, 'image')} classified: {options.output}")
    return 0
