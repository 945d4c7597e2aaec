"""A trained network that is given images and returns their classes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_names import as_text
from lit_cnn.data.decoding import DECODING_ERRORS, check_pixels, to_pixels
from lit_cnn.data.findings import warn_of
from lit_cnn.data.pixel_values import PixelOptions, pixel_options, scaled
from lit_cnn.data.sources import FileImages, find_images, read_image
from lit_cnn.evaluation.predict import Loading, ViewImages, forward, logits_of, probabilities_of, to_device
from lit_cnn.evaluation.report.page import grid
from lit_cnn.portable import ImageClassifier
from lit_cnn.training.load import load_classifier

if TYPE_CHECKING:
    import pandas

ImageLike = str | Path | Image.Image | np.ndarray
"""A path to an image, an image of PIL, or an array `(H, W)` or `(H, W, C)` uint8, C 1 (gray) or 3 (RGB)."""

_MOST_BARS = 5  # classes of a single prediction in a notebook
_ADVICE = "give a path, an image of PIL, an (H, W), (H, W, 1) or (H, W, 3) uint8 array, a list of these, or a folder"


@dataclass(frozen=True)
class Prediction:
    """What a network predicts for one image.

    Attributes:
        label: The most probable class.
        probability: Of that class, in [0, 1].
        probabilities: Class -> probability, in label order; their sum is 1.
        file: The image's file; None for one that came from none.
    """

    label: str
    probability: float
    probabilities: Mapping[str, float]
    file: Path | None = None

    def __str__(self) -> str:
        name = f"{as_text(str(self.file))}: " if self.file is not None else ""
        return f"{name}{self.label} ({100 * self.probability:.1f} %)"

    def _repr_html_(self) -> str:
        best = sorted(self.probabilities.items(), key=lambda item: -item[1])[:_MOST_BARS]
        rows = [(label, f"{100 * probability:.1f}") for label, probability in best]
        return grid((as_text(str(self.file or "Class")), "Probability %"), rows)


class PredictionList(list[Prediction]):
    """Predictions for several images, in their order; a list that shows itself as a table."""

    def to_dataframe(self) -> "pandas.DataFrame":
        """Returns a row for each image: file, label, probability, and a column for each class."""
        import pandas

        return pandas.DataFrame(
            [
                {"file": each.file, "label": each.label, "probability": each.probability, **each.probabilities}
                for each in self
            ]
        )

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    def _repr_html_(self) -> str:
        rows = [
            (as_text(str(each.file or place)), each.label, f"{100 * each.probability:.1f}")
            for place, each in enumerate(self)
        ]
        return grid(("Image", "Class", "Probability %"), rows)


@dataclass(frozen=True)
class Predictor:
    """Classifies images of any size, as validation sees them; made by `load`.

    Attributes:
        classifier: What is run.
    """

    classifier: ImageClassifier

    @property
    def class_names(self) -> Sequence[str]:
        """In label order."""
        return self.classifier.class_names

    def predict(
        self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 64, num_workers: int = 2
    ) -> Prediction | PredictionList:
        """Classifies one image or several.

        Args:
            images: An image: a path, an image of PIL, an array `(H, W)`, `(H, W, 1)` or `(H, W, 3)` uint8; a list of
                these; or a folder, which is searched with its sub-folders.
            batch_size: Images in one forward pass.
            num_workers: Processes that decode images of a folder.

        Returns:
            One for one image, else a list in the order of the images; of a folder in the order of its files' names.

        Raises:
            UsageError: If an image cannot be decoded, an array is of another shape or type, or a folder has no image.
        """
        if isinstance(images, str | Path) and (folder := Path(images).expanduser()).is_dir():
            return self.predict_folder(folder, batch_size=batch_size, num_workers=num_workers)
        loading = Loading(batch_size, num_workers)
        if not isinstance(images, list | tuple):
            return self._predict(*self._decoded([images]), loading)[0]
        if not images:
            return PredictionList()
        return self._predict(*self._decoded(images), loading)

    def predict_folder(self, folder: str | Path, *, batch_size: int = 64, num_workers: int = 2) -> PredictionList:
        """Classifies every image in a folder and its sub-folders; see `predict`."""
        files, findings = find_images(Path(folder))
        warn_of(findings)
        images = FileImages(files, self.classifier.in_channels, self._pixels)
        return self._predict(images, files, Loading(batch_size, num_workers))

    @property
    def _pixels(self) -> PixelOptions:
        return pixel_options(self.classifier.pixel_range, self.classifier.background)

    def _predict(self, images: Sequence[np.ndarray], files: Sequence[Path | None], loading: Loading) -> PredictionList:
        views = ViewImages(images, np.arange(len(images)), self.classifier.preprocessing)
        (probabilities,) = forward(probabilities_of(self.classifier), views, loading, "predicting")
        names, found = self.class_names, PredictionList()
        for file, row in zip(files, probabilities, strict=True):
            best = int(row.argmax())
            found.append(Prediction(names[best], float(row[best]), dict(zip(names, row.tolist(), strict=True)), file))
        return found

    def _decoded(self, images: Sequence[Any]) -> tuple[list[np.ndarray], list[Path | None]]:
        files = [Path(image).expanduser() if isinstance(image, str | Path) else None for image in images]
        in_channels = self.classifier.in_channels
        return [
            read_image(file, in_channels, self._pixels)
            if file is not None
            else _pixels(image, in_channels, self._pixels)
            for file, image in zip(files, images, strict=True)
        ], files


def checkpoint_classifier(path: Path) -> ImageClassifier:
    """Returns a checkpoint's network as what classifies images, on the GPU if there is one; see `load_classifier`."""
    model, record = load_classifier(path)
    logits = logits_of(to_device(model))
    names = ("image_size", "in_channels", "interpolation", "crop_pct", "pixel_range", "background")
    seen = {name: model.hparams[name] for name in names}
    return ImageClassifier(
        record["class_names"],
        **seen,
        probabilities=lambda images: logits(torch.from_numpy(images)).softmax(1).cpu().numpy(),
    )


def _pixels(image: Any, in_channels: int, options: PixelOptions) -> np.ndarray:
    """Returns an image as `(H, W, in_channels)` uint8; converted as a file with the same pixels would be."""
    if isinstance(image, np.ndarray):
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)) or 0 in image.shape:
            raise UsageError("images", None, f"an array of shape {image.shape} is no image", _ADVICE)
        if image.dtype != np.uint8 and options.pixel_range is not None and image.dtype.kind in "uif":
            image = scaled(image, *options.pixel_range)
        if image.dtype != np.uint8:
            reason = f"an array of {image.dtype} has no known range"
            raise UsageError("images", None, reason, "give uint8 from 0 to 255")
        image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    if not isinstance(image, Image.Image):
        raise UsageError("images", None, f"{type(image).__name__} is no image", _ADVICE)
    try:
        check_pixels(image, options)
        return to_pixels(image, in_channels, options)
    except DECODING_ERRORS as error:
        raise UsageError("images", None, f"an image of PIL cannot be decoded ({error})", _ADVICE) from error
