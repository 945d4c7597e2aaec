"""`lit-cnn predict`: what a classifier says of every image in a folder."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import replace_atomically
from lit_cnn.core.resize import Interpolation, resize_and_center_crop
from lit_cnn.data.batches import stack_images
from lit_cnn.data.sources import list_images, read_image
from lit_cnn.evaluation.predictions import classify
from lit_cnn.portable import ImageClassifier
from lit_cnn.training.load import load_classifier

UNCERTAIN = "uncertain"
"""What `predict_folder` writes in place of a class that is not probable enough."""


class FolderImages(Dataset[torch.Tensor]):
    """Images without labels, as validation sees them: what `lit-cnn predict` reads.

    Args:
        files: The image files.
        size: S, pixels of the square.
        in_channels: 1 (gray) or 3 (RGB).
        interpolation: How to resize.
    """

    def __init__(self, files: Sequence[Path], size: int, in_channels: int, interpolation: Interpolation) -> None:
        self.files = files
        self.size = size
        self.in_channels = in_channels
        self.interpolation = interpolation

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, positions: Sequence[int]) -> torch.Tensor:
        """Returns images `(N, C, S, S)` uint8."""
        images = [read_image(self.files[position], self.in_channels) for position in positions]
        return stack_images([resize_and_center_crop(image, self.size, self.interpolation) for image in images])


def checkpoint_classifier(path: Path) -> ImageClassifier:
    """Returns what a checkpoint's network says of images, on the GPU if there is one; see `load_classifier`."""
    model, record = load_classifier(path)
    model.to("cuda" if torch.cuda.is_available() else "cpu")

    def probabilities(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(images).to(model.device)).float().softmax(1).cpu().numpy()

    seen = {name: model.hparams[name] for name in ("image_size", "in_channels", "interpolation")}
    return ImageClassifier(record["class_names"], **seen, probabilities=probabilities)


def predict_folder(
    classifier: ImageClassifier,
    folder: Path,
    output: Path,
    batch_size: int,
    num_workers: int,
    min_confidence: float | None = None,
) -> int:
    """Classifies every image of a folder into a CSV file of file, class, probability.

    Args:
        classifier: What is asked.
        folder: Searched with its sub-folders.
        output: The CSV file; replaced if it is there.
        batch_size: Images per forward pass.
        num_workers: Processes that decode images.
        min_confidence: In [0, 1]: an image whose most probable class is less probable is of the class `uncertain`, and
            a further column, `best_class`, names the most probable one of each image.

    Returns:
        The number of images.

    Raises:
        UsageError: If there are no images, one cannot be decoded, or the file cannot be written.
    """
    if batch_size < 1 or num_workers < 0:
        raise UsageError(f"--batch_size {batch_size} --num_workers {num_workers}: give at least 1 and at least 0")
    files = list_images(folder)
    images = FolderImages(files, classifier.image_size, classifier.in_channels, classifier.interpolation)
    probabilities = classify(classifier, images, len(files), batch_size, num_workers, "predicting")
    header, rows = ["file", "class", "probability"], []
    for file, of_image in zip(files, probabilities, strict=True):
        best, probability = classifier.class_names[int(of_image.argmax())], float(of_image.max())
        is_uncertain = min_confidence is not None and probability < min_confidence
        rows.append([file.relative_to(folder).as_posix(), UNCERTAIN if is_uncertain else best, f"{probability:.6f}"])
        if min_confidence is not None:
            rows[-1].append(best)
    if min_confidence is not None:
        header.append("best_class")
    try:
        with replace_atomically(output) as temporary, temporary.open("w", newline="", encoding="utf-8") as table:
            csv.writer(table).writerows([header, *rows])
    except OSError as error:
        raise UsageError(f"--output {output}: cannot be written ({error.strerror}); give another file") from error
    return len(rows)
