"""From an (H, W, C) uint8 image of any size to an (S, S, C) uint8 image: as validation sees it, and as training does.

Pixels stay uint8 here; the classifier normalises them on its device, which moves a quarter of the bytes.
"""

import importlib
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.randomness import KeyedRandom
from lit_cnn.core.resize import (
    CV2_INTERPOLATION,
    LONGEST_SHAPE,
    Interpolation,
    resize_and_center_crop,
    resize_shorter_side,
)
from lit_cnn.data.transform_check import check_transforms, check_view, failure, picture, wrong_size

if TYPE_CHECKING:
    import albumentations

TrainCrop = Literal["center", "random", "random_resized"]
RANDOM_CROP_PCT = 224 / 256
"""Share of the shorter side that a `random` training crop shows."""
CROP_SCALE, CROP_RATIO = (0.35, 1.0), (3 / 4, 4 / 3)
"""Shares of the area, and aspect ratios, of a `random_resized` training crop."""

_LARGER = 1.4  # times the shorter side that is needed, at least, for an image to be shrunk: half of the pixels

# On gray images albumentations does something else with these, nothing at all, or stops.
_RGB_ONLY = {
    "ChannelDropout",
    "ChannelShuffle",
    "FancyPCA",
    "HueSaturationValue",
    "PCAColor",
    "PlanckianJitter",
    "RGBShift",
    "ToGray",
    "ToSepia",
}


class TrainTransform:
    """Crop and augmentation of one image, drawn from its key alone.

    Args:
        size: S, pixels of the square that the network takes.
        crop: `center` (as validation), `random` (shorter side to round(S * 256 / 224), then a random square:
            Krizhevsky et al. 2012, section 4.1) or `random_resized` (a random share of the area at a random aspect
            ratio, after Szegedy et al. 2014, section 6).
        augment: albumentations transforms as `{"class_path": …, "init_args": {…}}`, applied in order to the square;
            the `transforms` of a OneOf and the like are given in the same way.
        interpolation: See `resize_shorter_side`.
        crop_pct: Share of the shorter side that validation sees, in (0, 1].
        crop_scale: Least and largest share of the area of `random_resized`.
        crop_ratio: Its least and largest aspect ratio, width / height.

    Attributes:
        augment: As given.
        steps: albumentations transforms in the order in which they are applied, the crop first.
        all_steps: Those, and the ones inside a OneOf and the like.

    Raises:
        UsageError: If a transform is not there or refuses its arguments.
    """

    def __init__(
        self,
        size: int,
        crop: TrainCrop = "center",
        augment: Sequence[Mapping[str, Any]] = (),
        interpolation: Interpolation = "area",
        crop_pct: float = 1.0,
        crop_scale: Sequence[float] = CROP_SCALE,
        crop_ratio: Sequence[float] = CROP_RATIO,
    ) -> None:
        self.size = size
        self.crop = crop
        self.augment = [dict(spec) for spec in augment]
        self.interpolation: Interpolation = interpolation
        self.crop_pct = crop_pct
        self._crop_scale, self._crop_ratio = crop_scale, crop_ratio
        crops = _crop_transforms(size, crop, interpolation, crop_scale, crop_ratio)
        self.steps = crops + [_instantiate(spec) for spec in augment]
        self.all_steps = list(_flatten(self.steps))
        self._compose = _compose(self.steps) if self.steps else None
        self._checked_channels: set[int] = set()
        self._random = KeyedRandom()
        if self._compose is not None:
            self._compose.set_random_state(self._random.generator, self._random.python_random)

    def check(self, in_channels: int) -> None:
        """Refuses transforms that do not give what training takes, having run them on a picture of the size S.

        They are made anew for it: neither they nor what is drawn in training change. Transforms of colour are refused
        for gray images, too: albumentations would take them and do something else.

        Args:
            in_channels: 1 (gray) or 3 (RGB).

        Raises:
            UsageError: If there is one; see `check_transforms`.
        """
        names = {type(transform).__name__ for transform in self.all_steps}
        if in_channels == 1 and (found := sorted(names & _RGB_ONLY)):
            raise UsageError(
                "augment",
                found[0],
                "works on colours, and the images are gray",
                "leave it out, or give `in_channels=3`",
            )
        if not self.augment or in_channels in self._checked_channels:
            return
        check_transforms(self._made_anew, picture(self.size, self.size, in_channels), self.size)
        self._checked_channels.add(in_channels)

    def _made_anew(self) -> list["albumentations.BasicTransform"]:
        steps = [_instantiate(spec) for spec in self.augment]
        _set_covariance(steps, np.diag([0.05] * 3).tolist())  # that of the images is not known yet
        return steps

    @property
    def needs_covariance(self) -> bool:
        """Whether a PCAColor waits for the covariance of the training images."""
        return any(getattr(transform, "covariance", ()) is None for transform in self.all_steps)

    def set_covariance(self, covariance: Sequence[Sequence[float]]) -> None:
        """Gives the `(3, 3)` RGB covariance of the training images, pixels in [0, 1], to each PCAColor without one."""
        _set_covariance(self.steps, covariance)

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Returns the `(H', W', C)` uint8 image that the crop is cut from: what comes before all that is drawn."""
        if self.crop == "center":
            return resize_and_center_crop(image, self.size, self.interpolation, self.crop_pct)
        if self.crop == "random":
            return resize_shorter_side(image, self._shorter_side, self.interpolation)
        return image

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Returns what `view` takes in place of an image: what `resize` does, but for `random_resized`.

        For that it is shrunk so far that the smallest part that may be cut out is still not enlarged.
        """
        if self.crop != "random_resized":
            return self.resize(image)
        height, width = image.shape[:2]
        is_large = min(height, width) >= _LARGER * self._least_side
        is_long = max(height, width) > LONGEST_SHAPE * min(height, width)
        return resize_shorter_side(image, self._least_side, self.interpolation) if is_large and not is_long else image

    @property
    def prepared_as(self) -> str:
        """Tells `prepare` apart from that of other options."""
        if self.crop == "random_resized":
            return f"shrunk {self._least_side} {_LARGER} {self.interpolation}"
        return f"{self.crop} {self.size} {self._shorter_side} {self.interpolation}"

    @property
    def _least_side(self) -> int:
        """Returns the shorter side of the smallest image of which no `random_resized` crop is enlarged."""
        (scale, _), (narrow, wide) = self._crop_scale, self._crop_ratio
        # Where no draw fits, it cuts the largest part of an allowed shape out of the middle.
        return math.ceil(self.size / min(math.sqrt(scale * min(narrow, 1 / wide)), 1 / narrow, wide))

    def reduction(self, height: int, width: int, *key: int | str) -> int:
        """Returns how many times smaller an image may be decoded so that its view is still not enlarged.

        What is drawn are shares of the image, so the view shows the same part of it, but for rounding: a part that just
        does not fit into the whole image, and is drawn again, may fit into the smaller one.

        Args:
            height: Of the whole image, in pixels.
            width: Likewise.
            key: That of the view.

        Returns:
            1, 2, 4 or 8.
        """
        for factor in (8, 4, 2):
            reduced = (-(-height // factor), -(-width // factor))
            if min(reduced) < self._shorter_side:
                continue
            if self.crop != "random_resized" or min(self._random_crop(*reduced, *key)) >= self.size:
                return factor
        return 1

    @property
    def _shorter_side(self) -> int:
        """Returns to how many pixels the shorter side is scaled; of `random_resized`, what it has at least."""
        share = {"center": self.crop_pct, "random": RANDOM_CROP_PCT, "random_resized": 1.0}[self.crop]
        return round(self.size / share)

    def _random_crop(self, height: int, width: int, *key: int | str) -> tuple[int, int]:
        """Returns the height and width of what RandomResizedCrop will cut from an image of this size."""
        assert self._compose is not None
        self._random.rekey("augment", *key)
        self._random.python_random.random()  # Compose's own: whether to do anything at all
        left, top, right, bottom = self.steps[0].get_params_dependent_on_data({"shape": (height, width)}, {})[
            "crop_coords"
        ]
        return bottom - top, right - left

    def __call__(self, image: np.ndarray, *key: int | str) -> np.ndarray:
        """Returns the `(S, S, C)` uint8 view of an `(H, W, C)` uint8 image that belongs to the key; see `view`."""
        return self.view(self.resize(image), *key)

    def view(self, image: np.ndarray, *key: int | str) -> np.ndarray:
        """Returns the `(S, S, C)` uint8 view of what `resize` or `prepare` has made of an image.

        Raises:
            UsageError: If a transform raises an error, or gives something else.
        """
        if self._compose is None:
            return image
        self._random.rekey("augment", *key)
        try:
            view = self._compose(image=image)["image"]
        except (OSError, MemoryError, UsageError):
            raise
        except Exception as error:  # whatever a class of the user's own may raise
            raise failure(error, self._names, image) from error
        # `check` has seen a few draws, and this may be another one.
        channels, height_and_width = image.shape[-1], (self.size, self.size)
        check_view(view, channels, self._names)
        if view.shape[:2] != height_and_width:
            raise wrong_size(self._names, view, self.size)
        return view.reshape(*height_and_width, channels)

    @property
    def _names(self) -> str:
        return ", ".join(type(step).__name__ for step in self.steps)


def _crop_transforms(
    size: int, crop: TrainCrop, interpolation: Interpolation, scale: Sequence[float], ratio: Sequence[float]
) -> list["albumentations.BasicTransform"]:
    if crop == "center":
        return []
    albumentations = _import_albumentations()
    if crop == "random":
        return [albumentations.RandomCrop(size, size)]
    method = CV2_INTERPOLATION[interpolation]
    options = {"scale": tuple(scale), "ratio": tuple(ratio), "interpolation": method}
    return [albumentations.RandomResizedCrop(size=(size, size), **options)]


def _instantiate(spec: Mapping[str, Any]) -> "albumentations.BasicTransform":
    albumentations = _import_albumentations()
    class_path = spec.get("class_path")
    unknown = set(spec) - {"class_path", "init_args"}
    if not isinstance(class_path, str) or unknown:
        raise UsageError("augment", dict(spec), "give class_path and, if needed, init_args; nothing else")
    options = dict(spec.get("init_args", {}))
    if isinstance(options.get("transforms"), list):  # OneOf, SomeOf, Sequential
        options["transforms"] = [_instantiate(inner) for inner in options["transforms"]]
    module_name, _, class_name = class_path.rpartition(".")
    try:
        builder = getattr(importlib.import_module(module_name or "albumentations"), class_name)
        # Before it is called: a checkpoint's configuration may name anything.
        kinds = (albumentations.BasicTransform, albumentations.BaseCompose)
        if not (isinstance(builder, type) and issubclass(builder, kinds)):
            raise UsageError("augment", class_path, "is not an albumentations transform")
        with warnings.catch_warnings():
            # albumentations warns of an argument that it does not know, and goes on without it.
            warnings.filterwarnings("error", r"Argument\(s\)", UserWarning)
            transform = builder(**options)
    except (ImportError, AttributeError) as error:
        raise UsageError("augment", class_path, "no such transform", "see albumentations 2.0.8's list") from error
    except UsageError:
        raise
    except Exception as error:  # whatever a class of the user's own may raise
        # pydantic's message has a line per fault and one with a web address: keep it to what went wrong.
        reason = re.sub(r"\s+", " ", re.sub(r"For further information.*", "", str(error))).strip()
        raise UsageError("augment", class_path, reason or f"cannot be made ({type(error).__name__})") from error
    return transform


def _set_covariance(transforms: Sequence[Any], covariance: Sequence[Sequence[float]]) -> None:
    for transform in _flatten(transforms):
        if getattr(transform, "covariance", ()) is None:
            transform.covariance = [list(row) for row in covariance]


def _flatten(transforms: Sequence[Any]) -> Iterator[Any]:
    """Yields the transforms, and those inside a OneOf and the like."""
    for transform in transforms:
        yield transform
        yield from _flatten(getattr(transform, "transforms", ()))


def _compose(transforms: list["albumentations.BasicTransform"]) -> "albumentations.Compose":
    return _import_albumentations().Compose(transforms)


def _import_albumentations() -> Any:
    # It would ask the network for its newest version at import.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations
