"""Options of a data module that can be told to be wrong before anything is read."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from lit_cnn.core.addresses import is_address
from lit_cnn.core.errors import UsageError, at_least
from lit_cnn.data.image_set import EncodedImages
from lit_cnn.data.splits import SplitScheme


def check_options(given: Mapping[str, Any]) -> None:
    """Refuses numbers out of range, and options that others make meaningless.

    Args:
        given: The arguments of `ImageDataModule`.

    Raises:
        UsageError: Naming the first.
    """
    at_least(1, **{name: given[name] for name in ("batch_size", "limit_train", "views", "max_pixels")})
    at_least(0, num_workers=given["num_workers"])
    for option in ("val_fraction", "test_fraction"):
        if not 0 < given[option] < 1:
            raise UsageError(option, given[option], "give a share above 0 and below 1, for example 0.1")
    if given["split_scheme"] not in get_args(SplitScheme):
        raise UsageError("split_scheme", given["split_scheme"], "give 2, or 1 for the draw of 0.2 and before")
    _check_folds(given)
    if (cache_gb := given["cache_gb"]) is not None:
        if not 0 <= cache_gb < float("inf"):
            raise UsageError("cache_gb", cache_gb, "give gigabytes, 0 to keep nothing")
        if not is_address(given["root"]):
            raise UsageError("cache_gb", cache_gb, "keeps images of an address here, such as s3://", "leave it out")
    prepared = given["prepared"]
    if prepared not in ("auto", "off") and (isinstance(prepared, str) or not 0 < prepared < float("inf")):
        raise UsageError("prepared", prepared, "give auto, off or gigabytes")
    if given["sampler"] == "streamed" and prepared not in ("auto", "off"):
        raise UsageError("prepared", prepared, "keeps nothing with `sampler=streamed`", "leave one of them out")
    sizes, size = given["image_sizes"], given["image_size"]
    if sizes is not None and (not sizes or min(sizes) < 1 or (size is not None and max(sizes) > size)):
        largest = f", at most `image_size={size}`" if size is not None else ""
        raise UsageError("image_sizes", sizes, f"give pixels{largest}, for example [64, 96, 128]")
    crop_pct = given["crop_pct"]
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise UsageError("crop_pct", crop_pct, "give a share above 0 and at most 1, for example 0.875")
    for option, advice in (
        ("crop_scale", "give two shares above 0 and up to 1"),
        ("crop_ratio", "give two numbers above 0"),
    ):
        if given[option] is not None:
            _check_range_of_crop(option, given, advice)


def check_for_decoded(given: Mapping[str, Any], images: Sequence[np.ndarray]) -> None:
    """Refuses options of decoding, where images are not decoded here.

    Raises:
        UsageError: Naming the first that was given.
    """
    for option, usual in (("reduced_decode", (False,)), ("prepared", ("auto", "off"))):
        if given[option] not in usual and not isinstance(images, EncodedImages):
            raise UsageError(option, given[option], "these images are decoded already", "leave it out")


def _check_folds(given: Mapping[str, Any]) -> None:
    num_folds, fold = given["num_folds"], given["fold"]
    if num_folds is None:
        for option in ("fold", "fold_seed"):
            if given[option] is not None:
                raise UsageError(option, given[option], "of how many?", "give `num_folds` too")
        return
    at_least(2, num_folds=num_folds)
    if fold is None or not 0 <= fold < num_folds:
        remedy = f"0 to {num_folds - 1}; `folds={num_folds}` in place of both trains one network a fold"
        option, value = ("num_folds", num_folds) if fold is None else ("fold", fold)
        raise UsageError(option, value, f"{'give `fold` too: ' if fold is None else 'give '}{remedy}")
    if given["split_seed"] == "seed":
        reason = "each seed would have another test: folds have one"
        raise UsageError("split_seed", "seed", reason, "give a number; `split_seeds=0 1 2` cuts the folds anew")


def _check_range_of_crop(option: str, given: Mapping[str, Any], advice: str) -> None:
    least, largest = given[option]
    value = f"[{least}, {largest}]"
    if not 0 < least <= largest or (option == "crop_scale" and largest > 1):
        raise UsageError(option, value, f"{advice}, the smaller first")
    if given["train_crop"] != "random_resized":
        reason = f"is ignored by `train_crop={given['train_crop']}`"
        raise UsageError(option, value, reason, "leave it out, or give `train_crop=random_resized`")
