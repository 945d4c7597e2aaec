"""Whether transforms give what the loader takes: a list of them is run before training runs it."""

import itertools
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.words import counted

_DRAWS = 4  # of each transform, from each size that may come to it
_SLOW = 0.02  # seconds; what takes longer is drawn once, so that a run does not start later
_MOST_SIZES = 8  # that are followed through the list
_MOST_ORDERS = 200  # of the transforms inside a SomeOf, where some of them change the size


class _View(NamedTuple):
    """An image on its way through a list, and the transform that last changed its size; None for none."""

    image: np.ndarray
    resized_by: Any = None


def check_transforms(make: Callable[[], list[Any]], start: np.ndarray, size: int) -> None:
    """Runs transforms one after the other, each several times, those inside a OneOf and the like too.

    What may be left undone, by its `p` or in a OneOf, is looked at done and undone: every size that an image may have
    on its way is followed to the end.

    Args:
        make: Makes albumentations transforms that nothing else uses: they are changed.
        start: `(H, W, C)` uint8, what the first of them is given.
        size: S, pixels of the square that has to come out.

    Raises:
        UsageError: If one raises an error or gives anything but a uint8 array of the same channels, or if what comes
            out in the end is not S x S; the line names the transform.
    """
    from albumentations import Compose

    with _same_randomness(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it will be said when it is meant
        steps = make()
        compose = Compose(list(steps))
        compose.set_random_state(np.random.default_rng(0), random.Random(0))
        chances = _set_to_certain(compose)
        for view in _in_turn(steps, [_View(start)], chances):
            if view.image.shape[:2] != (size, size):
                raise wrong_size(_name(view.resized_by), view.image, size)


def picture(height: int, width: int, channels: int) -> np.ndarray:
    """Returns an image with slopes, an edge, colours and noise, `(height, width, channels)` uint8; always the same."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    shades = np.stack([x, y, 1 - (x + y) / 2], axis=-1)
    shades[(x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.06] = 0.8, 0.3, 0.4
    noise = np.random.default_rng(0).normal(0, 0.04, shades.shape)
    return np.rint(255 * (shades + noise).clip(0, 1)).astype(np.uint8)[..., :channels]


def check_view(view: Any, channels: int, name: str) -> None:
    """Refuses what a transform gives if it is no uint8 array of so many channels.

    Args:
        view: What it gives for an `(H, W, channels)` uint8 image; a single channel may have lost its axis.
        channels: 1 or 3.
        name: The transform's.
    """
    if not isinstance(view, np.ndarray):
        reason = f"gives a {type(view).__name__}, no array of NumPy"
        raise UsageError("augment", name, reason, "leave it out: the loader makes tensors of the images")
    if view.dtype != np.uint8:
        remedy = "leave it out: pixels stay uint8 here, and are normalised by `mean` and `std` on the device"
        raise UsageError("augment", name, f"gives {view.dtype} pixels", remedy)
    found = view.shape[2] if view.ndim == 3 else 1
    if view.ndim not in (2, 3) or 0 in view.shape:
        raise UsageError("augment", name, f"gives an array of shape {view.shape}, no image", "leave it out")
    if found != channels:
        remedy = f"leave it out, or give `in_channels={found}` instead" if found in (1, 3) else "leave it out"
        raise UsageError("augment", name, f"makes {counted(found, 'channel')} of {channels}", remedy)


def wrong_size(name: str, view: np.ndarray, size: int) -> UsageError:
    """Returns in words that an image does not come out as a square of S pixels.

    Args:
        name: The transform that last changed its size.
        view: `(H, W, C)` or `(H, W)`, what comes out.
        size: S.
    """
    height, width = view.shape[:2]
    reason = f"gives {width} x {height} px, and the list has to give {size} x {size} px"
    return UsageError("augment", name, reason, "leave it out: how large images are is said by `image_size`")


def failure(error: Exception, name: str, image: np.ndarray) -> UsageError:
    """Returns in words that a transform raised an error.

    Args:
        error: What it raised.
        name: The transform's.
        image: `(H, W, C)` or `(H, W)`, what it was given.
    """
    height, width = image.shape[:2]
    said = (str(error).splitlines() or [""])[0].strip()
    reason = f"cannot be done to an image of {width} x {height} px, {type(error).__name__}" + (said and f": {said}")
    return UsageError("augment", name, reason, "give it other init_args, or leave it out")


def _outcomes(step: Any, given: _View, chances: dict[int, float], is_certain: bool = False) -> list[_View]:
    """Returns what a step may make of an image, one of each size.

    Args:
        step: A transform, or a composition of several.
        given: The image.
        chances: See `_set_to_certain`.
        is_certain: Whether it is done whatever its own `p` is, as the transform that a OneOf has drawn.
    """
    import albumentations

    chance = 1.0 if is_certain else chances[id(step)]
    if chance <= 0:
        return [given]
    if isinstance(step, albumentations.OneOf | albumentations.OneOrOther):
        is_weighed = isinstance(step, albumentations.OneOf)
        drawn = [inner for inner in step.transforms if not is_weighed or chances[id(inner)] > 0]
        found = [view for inner in drawn for view in _outcomes(inner, given, chances, True)]
    elif isinstance(step, albumentations.SomeOf):
        found = _some_of(step, given, chances)
    elif type(step) in (albumentations.Sequential, albumentations.Compose):
        found = _in_turn(step.transforms, [given], chances)
    else:
        if isinstance(step, albumentations.SelectiveChannelTransform):
            part = _called(lambda: np.ascontiguousarray(given.image[:, :, step.channels]), step, given.image)
            _in_turn(step.transforms, [_View(part)], chances)
        found = list(_drawn_often(step, given))
    return _one_of_each_size(found if chance >= 1 else [*found, given])


def _in_turn(steps: Iterable[Any], views: list[_View], chances: dict[int, float]) -> list[_View]:
    for step in steps:
        views = _one_of_each_size(outcome for view in views for outcome in _outcomes(step, view, chances))
    return views


def _some_of(step: Any, given: _View, chances: dict[int, float]) -> list[_View]:
    import albumentations

    alone = [_outcomes(inner, given, chances) for inner in step.transforms]
    if all(view.image.shape[:2] == given.image.shape[:2] for views in alone for view in views):
        return [given]
    orders: Iterator[tuple[Any, ...]]
    if step.replace:
        orders = itertools.product(step.transforms, repeat=step.n)
    elif isinstance(step, albumentations.RandomOrder):
        orders = itertools.permutations(step.transforms, step.n)
    else:
        orders = itertools.combinations(step.transforms, step.n)
    chosen = itertools.islice(orders, _MOST_ORDERS)
    return _one_of_each_size(view for order in chosen for view in _in_turn(order, [given], chances))


def _drawn_often(step: Any, given: _View) -> Iterator[_View]:
    started = time.monotonic()
    for _ in range(_DRAWS):
        yield _drawn(step, given)
        if time.monotonic() - started > _SLOW:
            break


def _drawn(step: Any, given: _View) -> _View:
    if "image" not in step.available_keys:
        raise UsageError("augment", _name(step), "does nothing to images", "leave it out")
    image, channels = given.image, given.image.shape[2] if given.image.ndim == 3 else 1
    view = _called(lambda: step(image=image.copy(), force_apply=True)["image"], step, image)
    check_view(view, channels, _name(step))
    return _View(view, given.resized_by if view.shape[:2] == image.shape[:2] else step)


def _called(call: Callable[[], Any], step: Any, image: np.ndarray) -> Any:
    try:
        return call()
    except Exception as error:  # whatever a class of the user's own may raise
        raise failure(error, _name(step), image) from error


def _one_of_each_size(views: Iterable[_View]) -> list[_View]:
    by_size: dict[tuple[int, ...], _View] = {}
    for view in views:
        by_size.setdefault(view.image.shape[:2], view)
    return list(by_size.values())[:_MOST_SIZES]


def _set_to_certain(step: Any) -> dict[int, float]:
    """Sets the `p` of a composition, and of all inside it, to 1; returns what they were, by the objects' ids."""
    from albumentations import BaseCompose

    chances = {id(step): step.p}
    step.p = 1.0
    for inner in step.transforms if isinstance(step, BaseCompose) else ():
        chances |= _set_to_certain(inner)
    return chances


def _name(step: Any) -> str:
    return type(step).__name__


@contextmanager
def _same_randomness() -> Iterator[None]:
    """Leaves the global generators as they were: a class of the user's own may draw from them."""
    torch: Any = sys.modules.get("torch")
    states = random.getstate(), np.random.get_state(), torch and torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if torch is not None:
            torch.set_rng_state(states[2])
