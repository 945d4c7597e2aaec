"""A file of logits: in half precision where no decision needs more, checked when it is opened, read image by image."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lit_cnn.core.files import replace_atomically

SMALL = 8 << 20
"""Bytes of float32 logits; a file of no more has them as they are."""

MOST_CHANGE = 1e-3
"""By how much halves may change a log-probability: by less than this, or this share of it if it is below -1."""

_TOP = 5
_NEAR_TIE = 1e-3  # between the two most probable classes of an image's mean over views: it is kept as it is
_PIECE = 8 << 20  # bytes that are read at a time


class Halves(NamedTuple):
    """Logits in half precision, and the rows that are kept as they are.

    Attributes:
        halves: `(V, N, K)` float16, each row minus its largest logit: softmax is the same, and precision is where the
            probable classes are.
        exact_rows: `(E,)` int64, ascending: `n * V + v` of each row that halves do not do.
        exact: `(E, K)` float32, these rows as they are.
    """

    halves: np.ndarray
    exact_rows: np.ndarray
    exact: np.ndarray


def to_halves(logits: np.ndarray) -> Halves:
    """Rounds logits to half precision where that changes no decision.

    A row stays float32 if halves changed its five most probable classes or their order, or a log-probability by more
    than `MOST_CHANGE` allows; if it has an infinity or NaN; and if the mean over views of its image's probabilities, or
    of its logits, had another class on top, or two within 0.001 of each other. What other files say of the image is not
    known here: a mean with them changes class only where two classes are closer than the rounding, some 0.0001.

    Args:
        logits: `(V, N, K)` float32.
    """
    num_views, num_images, num_classes = logits.shape
    halves = np.empty(logits.shape, np.float16)
    is_kept = np.empty((num_images, num_views), bool)
    step = max(1, _PIECE // (4 * num_views * num_classes))  # copies of a few images are small, and stay in the cache
    with np.errstate(invalid="ignore", over="ignore"):  # infinities and NaN are kept as they are
        for start in range(0, num_images, step):
            part = slice(start, start + step)
            halves[:, part], is_kept[part] = _rounded(logits[:, part])
    kept = np.flatnonzero(is_kept)
    images, views = np.divmod(kept, num_views)
    return Halves(halves, kept, logits[views, images].reshape(-1, num_classes))


def _rounded(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows less their largest logit in half precision, and `(N, V)` bool: which are kept as they are."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    halves = shifted.astype(np.float16)
    rounded = halves.astype(np.float32)
    probabilities, is_far = _compare(shifted, rounded)
    is_kept = is_far | ~np.isfinite(rounded).all(axis=-1) | _changes_top(shifted, rounded)
    is_kept |= _near_tie(probabilities) | _near_tie(shifted.mean(axis=0))
    return halves, is_kept.T


def _changes_top(shifted: np.ndarray, rounded: np.ndarray) -> np.ndarray:
    """Returns `(V, N)` bool: rounding makes ties, by which another class may come before or among the first five."""
    num_classes = shifted.shape[-1]
    most = min(_TOP, num_classes)
    top = np.sort(np.partition(shifted, num_classes - most, axis=-1)[..., num_classes - most :], axis=-1)
    rounded_top = top.astype(np.float16).astype(np.float32)
    # Rounding keeps the order of what it does not make equal.
    new_ties = ((np.diff(top, axis=-1) > 0) & (np.diff(rounded_top, axis=-1) == 0)).any(axis=-1)
    come_in = (rounded >= rounded_top[..., :1]).sum(axis=-1) != (shifted >= top[..., :1]).sum(axis=-1)
    changes: np.ndarray = new_ties | come_in
    return changes


def _compare(shifted: np.ndarray, rounded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean of the probabilities over views `(N, K)`, and `(V, N)` whether a log-probability moved too far.

    One view at a time: it takes several copies of what it looks at.
    """
    mean = np.zeros(shifted.shape[1:], np.float32)
    is_far = np.empty(shifted.shape[:2], bool)
    for view, (before, after) in enumerate(zip(shifted, rounded, strict=True)):
        exponential = np.exp(before)
        total = exponential.sum(axis=-1, keepdims=True)
        mean += exponential / total
        logarithm = before - np.log(total)
        change = np.abs(after - np.log(np.exp(after).sum(axis=-1, keepdims=True)) - logarithm)
        # NaN counts as too far.
        is_far[view] = ~(change <= MOST_CHANGE * np.maximum(1, -logarithm)).all(axis=-1)
    return mean / len(shifted), is_far


def _near_tie(values: np.ndarray) -> np.ndarray:
    """Returns `(N,)` bool: the two largest of `(N, K)` values are so close that rounding might exchange them."""
    if values.shape[-1] < 2:
        return np.zeros(len(values), bool)
    second, first = np.partition(values, values.shape[-1] - 2, axis=-1)[:, -2:].T
    near: np.ndarray = ~(first - second > _NEAR_TIE)
    return near


def write_logits(file: Path, logits: np.ndarray, exact: bool | None = None) -> None:
    """Writes logits with their SHA-256 inside, whole or not at all.

    Args:
        file: Where to; replaced if it is there.
        logits: `(V, N, K)` float32.
        exact: Whether all of them are kept as they are; by default only what is `SMALL`.
    """
    exact = logits.nbytes <= SMALL if exact is None else exact
    tensors = {"logits": np.ascontiguousarray(logits)}
    if not exact:
        found = to_halves(logits)
        if sum(each.nbytes for each in found) < logits.nbytes:
            tensors = {name: np.ascontiguousarray(each) for name, each in found._asdict().items() if each.size}
    digest = hashlib.sha256()
    for name in _ORDER:
        if name in tensors:
            digest.update(_said_of(name, tensors[name].shape))
            digest.update(tensors[name].data)
    with replace_atomically(file) as temporary:
        save_file(tensors, temporary, {"sha256": digest.hexdigest()})


_ORDER = ("logits", *Halves._fields)


@dataclass(frozen=True)
class LogitsFile:
    """Stored logits that were whole when they were opened; none of them is in memory.

    Attributes:
        path: The file.
        shape: V, N, K.
    """

    path: Path
    shape: tuple[int, int, int]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns the logits of some images, `(V, stop - start, K)` float32; halves less each row's largest."""
        num_views = self.shape[0]
        with safe_open(self.path, "numpy") as stored:
            names = set(stored.keys())
            if "logits" in names:
                logits: np.ndarray = stored.get_slice("logits")[:, start:stop]
                return logits
            logits = stored.get_slice("halves")[:, start:stop].astype(np.float32)
            if "exact_rows" in names:
                rows = stored.get_tensor("exact_rows")
                first, last = np.searchsorted(rows, [start * num_views, stop * num_views])
                if first < last:
                    images, views = np.divmod(rows[first:last], num_views)
                    logits[views, images - start] = stored.get_slice("exact")[int(first) : int(last)]
            return logits


def open_logits(file: Path) -> LogitsFile | None:
    """Returns stored logits, or None if there are none or the file is not as it was written.

    Files of earlier versions, which are float32 as a whole, are read too.
    """
    try:
        with safe_open(file, "numpy") as stored:
            names = set(stored.keys())
            digest = hashlib.sha256()
            for name in _ORDER:
                if name in names:
                    digest.update(_said_of(name, stored.get_slice(name).get_shape()))
                    for piece in _pieces(stored.get_slice(name)):
                        digest.update(piece.data)
            if digest.hexdigest() != (stored.metadata() or {}).get("sha256"):
                return None
            of_all = stored.get_slice("logits" if "logits" in names else "halves")
            num_views, num_images, num_classes = of_all.get_shape()
            return LogitsFile(file, (num_views, num_images, num_classes))
    except (OSError, SafetensorError, ValueError):
        return None


def _said_of(name: str, shape: Sequence[int]) -> bytes:
    """Returns what the digest takes of a tensor besides its values; of float32 logits nothing, as ever."""
    return b"" if name == "logits" else f"{name} {list(shape)}".encode()


def read_logits(file: Path) -> np.ndarray | None:
    """Returns all stored logits `(V, N, K)` float32, or None as `open_logits` does."""
    found = open_logits(file)
    return None if found is None else found.read(0, found.shape[1])


def _pieces(stored: Any) -> Iterator[np.ndarray]:
    """Yields a tensor's values in the order of the file, a few MiB at a time."""
    shape = stored.get_shape()
    if len(shape) < 3:
        yield np.ascontiguousarray(stored[:])
        return
    step = max(1, _PIECE // (4 * shape[2]))
    for view in range(shape[0]):
        for start in range(0, shape[1], step):
            yield np.ascontiguousarray(stored[view : view + 1, start : min(start + step, shape[1])])
