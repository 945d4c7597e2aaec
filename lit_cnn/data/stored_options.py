"""Options of the data as a run or a checkpoint keeps them, perhaps of a version that had fewer."""

from collections.abc import Mapping
from typing import Any

MEANT_BEFORE: dict[str, Any] = {"split_scheme": 1, "crop_pct": 1.0, "prepared": "off"}
"""Options of `ImageDataModule` that versions up to 0.2 did not have -> what they did, where the default is another."""

ADDED = (
    "crop_scale",
    "crop_ratio",
    "pixel_range",
    "background",
    "num_folds",
    "fold",
    "fold_seed",
    "cache_gb",
    "image_sizes",
)
"""Further options that earlier versions did not have, and which do nothing where they are None."""


def as_decided(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options of `ImageDataModule` with `prepared` as far as it decides what training sees.

    That is `auto` where views are cut from shrunk images; else `off`, whatever is kept.
    """
    shrinks = data.get("train_crop") == "random_resized" and data.get("prepared", "off") != "off"
    is_left = data.get("reduced_decode") or data.get("sampler") == "streamed"
    return {**data, "prepared": "auto" if shrinks and not is_left else "off"}


def completed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns stored options of `ImageDataModule` with those that decided the data before they were options.

    Args:
        stored: As in the configuration of a run or a checkpoint. Not what a user writes: there defaults hold.
    """
    return {**MEANT_BEFORE, **stored}
