"""Which configurations `lit-cnn best` tries on a set of images."""

import math
from collections.abc import Mapping, Sequence

from lit_cnn.models.describe import describe
from lit_cnn.search.halving import Candidate
from lit_cnn.training.transfer import Regime

ARCHS = (
    "tf_efficientnet_lite0",
    "tf_efficientnet_lite2",
    "resnet50",
    "convnext_tiny.in12k_ft_in1k",
)
"""Networks whose published weights are tried, where they can be had."""

VIEWS = 5
"""Fixed views of each training image, for which what is frozen is computed once."""

SMALL = 48
"""Pixels of the shorter side up to which networks of small images are tried too."""

_EPOCHS = 20
_SCRATCH_EPOCHS = 30
_STEPS = 300  # that a training from weights makes at least: few images are seen in more epochs
_SCRATCH_SIZE = 64
_MANY = 500  # training images a class from which training from random weights is tried too
_SMALL_ARCHS = ("airbench", "resnet20")
_LARGE_ARCHS = ("resnet18",)
_BATCH_SIZE = 32  # few images are to make some steps
_BACKWARD = 3.0  # forward passes that a training step takes
_READING = 1e8  # multiply-adds in whose time an image is read and augmented
_LEAST = 1e6  # multiply-adds in whose time a cached image is trained on
_LAST_STAGES = 1.5  # forward passes that the last stages take, of a network that is cut before them


def candidates(
    weights: Mapping[str, str | None],
    regimes: Sequence[Regime],
    from_scratch: Sequence[str] | None,
    image_size: Mapping[str, int],
    shorter_side: int,
    num_images: int,
    num_classes: int,
    in_channels: int,
) -> list[Candidate]:
    """Returns the configurations to try: each network with each regime, and networks that start from nothing.

    Args:
        weights: Architecture -> the weights that can be had of it; those without are left out.
        regimes: The transfer regimes to try.
        from_scratch: Architectures that start from random weights; None for those that suit the images: for small ones,
            or where there are many, or no weights.
        image_size: Architecture -> pixels of the square that its weights expect.
        shorter_side: Median of the images' shorter sides, in pixels.
        num_images: Training images.
        num_classes: Number of classes.
        in_channels: Of the images, 1 or 3.
    """
    found = list[Candidate]()
    for arch, of_arch in weights.items():
        if of_arch is None:
            continue
        size = 112 if shorter_side <= SMALL else image_size[arch]
        more = [f"--data.image_size={size}", *(["--data.crop_pct=1.0"] if shorter_side <= SMALL else [])]
        for regime in regimes:
            if regime != "scratch":
                found.append(_transferred(arch, regime, of_arch, more, size, num_images, num_classes))
    if "scratch" not in regimes:
        return found
    is_small = shorter_side <= SMALL
    if from_scratch is None:
        from_scratch = _SMALL_ARCHS if is_small else _LARGE_ARCHS
        if found and not is_small and num_images < _MANY * num_classes:
            from_scratch = ()
    size = max(32, shorter_side) if is_small else _SCRATCH_SIZE
    return [*found, *(_scratch(arch, size, num_classes, in_channels) for arch in from_scratch)]


def _transferred(
    arch: str, regime: Regime, weights: str, more: Sequence[str], size: int, num_images: int, num_classes: int
) -> Candidate:
    one = _multiply_adds(arch, size, num_classes, 3)
    # A cached part is computed once for each view; the rest is trained in each epoch.
    of_epoch = {"head_only": 0.0, "last_stages": _LAST_STAGES * one, "full": _BACKWARD * one + _READING}[regime]
    once = 0.0 if regime == "full" else VIEWS * (one + _READING)
    views = "null" if regime == "full" else str(VIEWS)
    epochs = max(_EPOCHS, math.ceil(_STEPS / math.ceil(num_images / _BATCH_SIZE)))
    size_of_batch = f"--data.batch_size={_BATCH_SIZE}"
    options = (f"--config=transfer/{regime}", f"--data.views={views}", "--data.in_channels=3", size_of_batch, *more)
    return Candidate(
        f"{arch}, {regime}", arch, regime, weights, options, epochs, of_epoch + _LEAST, once, one + _READING
    )


def _scratch(arch: str, size: int, num_classes: int, in_channels: int) -> Candidate:
    one = _multiply_adds(arch, size, num_classes, in_channels)
    of_epoch = _BACKWARD * one + _READING
    options = (f"--data.image_size={size}", "--data.train_crop=center")
    return Candidate(
        f"{arch}, scratch", arch, "scratch", None, options, _SCRATCH_EPOCHS, of_epoch, pass_work=one + _READING
    )


def _multiply_adds(arch: str, size: int, num_classes: int, in_channels: int) -> float:
    described = describe(arch, image_size=size, num_classes=num_classes, in_channels=in_channels)
    return float(described.totals["multiply_adds"])
