"""A trained network that is given images and returns their classes."""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import yaml
from PIL import Image

from lit_cnn.core.errors import UsageError, at_least
from lit_cnn.core.file_names import as_text
from lit_cnn.core.words import counted
from lit_cnn.data.decoding import (
    DECODING_ERRORS,
    MAX_PIXELS,
    check_pixels,
    limit_pixels,
    open_file,
    pixel_limit,
    to_pixels,
)
from lit_cnn.data.findings import warn_of
from lit_cnn.data.inspection import inspect_file
from lit_cnn.data.pixel_values import PixelOptions, pixel_options, scaled
from lit_cnn.data.sources import FileImages, find_images, read_image
from lit_cnn.evaluation.good_images import forward_good
from lit_cnn.evaluation.predict import Loading, ViewImages, logits_of, probabilities_of, to_device
from lit_cnn.portable import ImageClassifier
from lit_cnn.reports.page import grid
from lit_cnn.training.load import load_classifier

if TYPE_CHECKING:
    import pandas

ImageLike = str | Path | Image.Image | np.ndarray
"""A path to an image, an image of PIL, or an array `(H, W)` or `(H, W, C)` uint8, C 1 (gray) or 3 (RGB)."""

OnBadImage = Literal["raise", "skip"]
"""What to do about an image that cannot be decoded: end there, or give a `Prediction` that has an `error` instead."""

_COLUMNS = ("file", "label", "probability", "error")
_MOST_BARS = 5  # classes of a single prediction in a notebook
_MOST_NAMES = 5  # of bad files in an error
_ADVICE = "give a path, an image of PIL, an (H, W), (H, W, 1) or (H, W, 3) uint8 array, a list of these, or a folder"


@dataclass(frozen=True)
class Prediction:
    """What a network predicts for one image.

    Attributes:
        label: The most probable class.
        probability: Of that class, in [0, 1].
        probabilities: Class -> probability, in label order; their sum is 1.
        file: The image's file; None for one that came from none.
        error: Why the image cannot be decoded; None if it was. The class is "" then, its probability NaN, and there are
            no probabilities.
    """

    label: str
    probability: float
    probabilities: Mapping[str, float]
    file: Path | None = None
    error: UsageError | None = None

    def __str__(self) -> str:
        if self.error is not None:
            return str(self.error)
        name = f"{as_text(str(self.file))}: " if self.file is not None else ""
        return f"{name}{self.label} ({100 * self.probability:.1f} %)"

    def _repr_html_(self) -> str:
        if self.error is not None:
            return grid(("Error",), [(str(self.error),)])
        best = sorted(self.probabilities.items(), key=lambda item: -item[1])[:_MOST_BARS]
        rows = [(label, f"{100 * probability:.1f}") for label, probability in best]
        return grid((as_text(str(self.file or "Class")), "Probability %"), rows)


class PredictionList(list[Prediction]):
    """Predictions for several images, in their order; a list that shows itself as a table."""

    def to_dataframe(self) -> "pandas.DataFrame":
        """Returns a row for each image: file, label, probability, a column for each class, and the error, if any.

        What cannot be decoded has no label. A class that is called as one of these is `class NAME`.
        """
        import pandas

        names = {name: f"class {name}" if name in _COLUMNS else name for each in self for name in each.probabilities}
        rows = [
            {
                "file": each.file,
                "label": each.label if each.error is None else None,
                "probability": each.probability,
                **{names[name]: probability for name, probability in each.probabilities.items()},
                "error": None if each.error is None else str(each.error),
            }
            for each in self
        ]
        return pandas.DataFrame(rows, columns=["file", "label", "probability", *names.values(), "error"])

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    def _repr_html_(self) -> str:
        rows = [
            (as_text(str(each.file or place)), each.label or str(each.error), f"{100 * each.probability:.1f}")
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
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        batch_size: int = 64,
        num_workers: int = 2,
        on_bad_image: OnBadImage = "raise",
        max_pixels: int | None = None,
    ) -> Prediction | PredictionList:
        """Classifies one image or several.

        Args:
            images: An image: a path, an image of PIL, an array `(H, W)`, `(H, W, 1)` or `(H, W, 3)` uint8; a list of
                these; or a folder, which is searched with its sub-folders.
            batch_size: Images in one forward pass.
            num_workers: Processes that decode images of files.
            on_bad_image: `raise` ends at an image that cannot be decoded, `skip` gives a `Prediction` with its `error`.
            max_pixels: Images of more pixels cannot be decoded; by default as in training.

        Returns:
            One for one image, else a list in the order of the images; of a folder in the order of its files' names.

        Raises:
            UsageError: If an image cannot be decoded, an array is of another shape or type, or a folder has no image.
        """
        given = images if isinstance(images, list | tuple) else [images]
        files = [Path(image).expanduser() if isinstance(image, str | Path) else None for image in given]
        paths = [file for file in files if file is not None]
        loading = Loading(batch_size, num_workers if len(paths) == len(files) else 0)
        if given is not images and paths and paths[0].is_dir():
            return PredictionList(self._predict(None, _images_in(paths[0]), loading, on_bad_image, max_pixels))
        found = self._predict(None if len(paths) == len(files) else given, files, loading, on_bad_image, max_pixels)
        return PredictionList(found) if given is images else next(found)

    def predict_folder(
        self,
        folder: str | Path,
        *,
        batch_size: int = 64,
        num_workers: int = 2,
        on_bad_image: OnBadImage = "raise",
        max_pixels: int | None = None,
    ) -> PredictionList:
        """Classifies every image in a folder and its sub-folders; see `predict`."""
        loading = Loading(batch_size, num_workers)
        return PredictionList(self._predict(None, _images_in(Path(folder)), loading, on_bad_image, max_pixels))

    def predict_files(
        self,
        files: Sequence[Path],
        *,
        batch_size: int = 64,
        num_workers: int = 2,
        on_bad_image: OnBadImage = "raise",
        max_pixels: int | None = None,
    ) -> Iterator[Prediction]:
        """Classifies image files, and yields each prediction as soon as it is there: it keeps none; see `predict`."""
        return self._predict(None, files, Loading(batch_size, num_workers), on_bad_image, max_pixels)

    def _predict(
        self,
        images: Sequence[Any] | None,
        files: Sequence[Path | None],
        loading: Loading,
        on_bad_image: OnBadImage,
        max_pixels: int | None,
    ) -> Iterator[Prediction]:
        """Yields predictions for images, or for files where there are no images."""
        if on_bad_image not in ("raise", "skip"):
            raise UsageError("on_bad_image", on_bad_image, "give raise or skip")
        at_least(1, max_pixels=max_pixels)
        in_channels, names = self.classifier.in_channels, self.class_names
        paths = [file for file in files if file is not None]
        options = pixel_options(self.classifier.pixel_range, self.classifier.background)
        given = (FileImages(paths, in_channels, options), _GivenImages(images or (), in_channels, options))
        views = ViewImages(given[images is not None], np.arange(len(files)), self.classifier.preprocessing)
        with pixels_limited_to(max_pixels or self.classifier.max_pixels or MAX_PIXELS):
            if on_bad_image == "raise" and len(paths) > 1:
                _refuse_bad_headers(paths, options)
            found = forward_good(probabilities_of(self.classifier), views, loading, "predicting")
            for file, row in zip(files, found, strict=True):
                if isinstance(row, UsageError):
                    if on_bad_image == "raise":
                        raise row
                    yield Prediction("", math.nan, {}, file, row)
                    continue
                best = int(row.argmax())
                yield Prediction(names[best], float(row[best]), dict(zip(names, row.tolist(), strict=True)), file)


class _GivenImages(Sequence[np.ndarray]):
    """Images in several forms, each `(H, W, in_channels)` uint8 when it is asked for."""

    def __init__(self, images: Sequence[Any], in_channels: int, options: PixelOptions) -> None:
        self.images = images
        self.in_channels = in_channels
        self.options = options

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # Sequence's overloads: an int or a slice
        image = self.images[index]
        if isinstance(image, str | Path):
            return read_image(Path(image).expanduser(), self.in_channels, self.options)
        return _pixels(image, self.in_channels, self.options)


@contextlib.contextmanager
def pixels_limited_to(max_pixels: int) -> Iterator[None]:
    """Lets images of so many pixels be decoded, and restores the limit."""
    before = pixel_limit()
    limit_pixels(max_pixels)
    try:
        yield
    finally:
        limit_pixels(before)


def _refuse_bad_headers(files: Sequence[Path], options: PixelOptions) -> None:
    """Names at once all files whose headers say already that they cannot be decoded; takes far less than decoding."""

    def fault(file: Path) -> str:
        try:
            with open_file(file) as opened:
                return inspect_file(opened, full=False, options=options).reason
        except UsageError as error:
            return error.reason

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bad = [(file, reason) for file, reason in zip(files, pool.map(fault, files), strict=True) if reason]
    if bad:
        shown = "; ".join(f"{file}: {reason}" for file, reason in bad[:_MOST_NAMES])
        more = f" and {len(bad) - _MOST_NAMES:,} more" if len(bad) > _MOST_NAMES else ""
        raise UsageError(
            None,
            counted(len(bad), "image"),
            f"cannot be decoded: {shown}{more}",
            "mend them or take them away, or `on_bad_image=skip`",
        )


def _images_in(folder: Path) -> list[Path]:
    files, findings = find_images(folder)
    warn_of(findings)
    return files


def checkpoint_classifier(path: Path) -> ImageClassifier:
    """Returns a checkpoint's network as what classifies images, on the GPU if there is one; see `load_classifier`."""
    model, record = load_classifier(path)
    logits = logits_of(to_device(model))
    names = ("image_size", "in_channels", "interpolation", "crop_pct", "pixel_range", "background")
    seen = {name: model.hparams[name] for name in names}
    data = (yaml.safe_load(record.get("config", "")) or {}).get("data", {})
    return ImageClassifier(
        record["class_names"],
        **seen,
        probabilities=lambda images: logits(torch.from_numpy(images)).softmax(1).cpu().numpy(),
        max_pixels=data.get("max_pixels"),
    )


def mean_of(classifiers: Sequence[ImageClassifier]) -> ImageClassifier:
    """Returns the mean of the probabilities of classifiers that see images alike."""

    def probabilities(images: np.ndarray) -> np.ndarray:
        mean: np.ndarray = np.mean([each.probabilities(images) for each in classifiers], axis=0)
        return mean

    return replace(classifiers[0], probabilities=probabilities)


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
