"""What networks say of images that they were not trained on: each of the folds of a run, put together."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.special import softmax

from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import replace_atomically
from lit_cnn.data.image_set import ImageSet

FOLDER = "out_of_fold"
"""Where these files are among a run's."""

OUTPUTS, LOGITS = "outputs.safetensors", "logits.safetensors"
"""Of one fold, with its run; of all of them, with the run above."""

_ENDS = "\0"  # of a path: none contains it


@dataclass(frozen=True, eq=False)
class Outputs:
    """What one network says of the images of its fold, which it was not trained on.

    Attributes:
        paths: Of the n images.
        targets: `(n,)` int64, their classes.
        logits: `(n, K)` float32.
        test: `(m, K)` float32, its probabilities for the test images in the order of the split; None if it was not
            tested on all of them.
    """

    paths: Sequence[str]
    targets: np.ndarray
    logits: np.ndarray
    test: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """What is said of N images by networks that were not trained on them, in each of R rounds of folds.

    A round has a network for each fold; several rounds differ in the seed of the training or in that of the folds.

    Attributes:
        paths: Of the N images, ascending.
        targets: `(N,)` int64, their classes.
        folds: `(R, N)` int64, the fold of each image.
        logits: `(R, N, K)` float32.
    """

    paths: Sequence[str]
    targets: np.ndarray
    folds: np.ndarray
    logits: np.ndarray

    @cached_property
    def probabilities(self) -> np.ndarray:
        """`(N, K)` float64, the mean over the rounds."""
        total = np.zeros(self.logits.shape[1:])
        for of_round in self.logits:
            total += softmax(of_round.astype(np.float64), axis=-1)
        return total / len(self.logits)

    @property
    def correct(self) -> np.ndarray:
        """`(N,)` bool, True where the class with the largest mean is right."""
        correct: np.ndarray = self.probabilities.argmax(axis=1) == self.targets
        return correct

    @property
    def correct_of_rounds(self) -> np.ndarray:
        """`(R, N)` bool, True where the round's one network is right."""
        correct: np.ndarray = self.logits.argmax(axis=-1) == self.targets
        return correct

    def places_in(self, image_set: ImageSet) -> np.ndarray:
        """Returns `(N,)` int, which images of a set these are."""
        place_of = {path: place for place, path in enumerate(image_set.paths)}
        return np.array([place_of[path] for path in self.paths])


def put_together(rounds: Sequence[Sequence[Outputs]]) -> OutOfFold:
    """Returns what the networks of all rounds say.

    Args:
        rounds: For each round the outputs of its folds, in their order.

    Raises:
        UsageError: If an image is in two folds of a round, or in none: the images have changed between two folds.
    """
    paths = sorted(path for outputs in rounds[0] for path in outputs.paths)
    place_of = {path: place for place, path in enumerate(paths)}
    num_classes = rounds[0][0].logits.shape[1]
    targets = np.zeros(len(paths), np.int64)
    folds = np.full((len(rounds), len(paths)), -1)
    logits = np.zeros((len(rounds), len(paths), num_classes), np.float32)
    for number, of_round in enumerate(rounds):
        for fold, outputs in enumerate(of_round):
            places = np.array([place_of.get(path, -1) for path in outputs.paths], np.int64)
            if (places < 0).any() or (folds[number, places] >= 0).any():
                raise _not_whole()
            folds[number, places], logits[number, places], targets[places] = fold, outputs.logits, outputs.targets
    if len(place_of) < len(paths) or (folds < 0).any():
        raise _not_whole()
    return OutOfFold(paths, targets, folds, logits)


def write_outputs(file: Path, outputs: Outputs) -> None:
    """Writes what one network says, whole or not at all."""
    tested = {} if outputs.test is None else {"test": outputs.test}
    _write(file, outputs.paths, {"targets": outputs.targets, "logits": outputs.logits, **tested})


def read_outputs(file: Path) -> Outputs | None:
    """Returns what one network says; None if there is none, or the file is not as it was written."""
    found = _read(file)
    return None if found is None else Outputs(found[0], *(found[1].get(name) for name in ("targets", "logits", "test")))  # type: ignore[arg-type]


def write_out_of_fold(file: Path, found: OutOfFold, image_set: ImageSet) -> None:
    """Writes what networks say of images that they were not trained on, whole or not at all.

    Tensors `targets`, `folds` and `logits` as in `OutOfFold`, `paths` as UTF-8, each ended by a zero byte, and `hashes`
    `(N, 64)`, the images' SHA-256 in hexadecimal digits (zeros where the source does not know it); the metadata have
    the `sha256` of all of it.
    """
    hashes = [image_set.hashes[place].encode()[:64].ljust(64, b"\0") for place in found.places_in(image_set)]
    tensors = {"targets": found.targets, "folds": found.folds, "logits": found.logits}
    _write(file, found.paths, {**tensors, "hashes": np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 64)})


def read_out_of_fold(file: Path) -> OutOfFold | None:
    """Returns what `write_out_of_fold` has written; None if there is none, or the file is not as it was written."""
    found = _read(file)
    return None if found is None else OutOfFold(found[0], *(found[1][name] for name in ("targets", "folds", "logits")))


def _write(file: Path, paths: Sequence[str], tensors: dict[str, np.ndarray]) -> None:
    text = "".join(f"{path}{_ENDS}" for path in paths).encode(errors="surrogateescape")
    whole = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    whole["paths"] = np.frombuffer(text, np.uint8)
    with replace_atomically(file) as temporary:
        save_file(whole, temporary, {"sha256": _digest(whole.items())})


def _read(file: Path) -> tuple[list[str], dict[str, np.ndarray]] | None:
    try:
        with safe_open(file, "numpy") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # no mapping
            digest = (stored.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    if _digest(tensors.items()) != digest:
        return None
    paths = tensors.pop("paths").tobytes().decode(errors="surrogateescape").split(_ENDS)[:-1]
    return paths, tensors


def _digest(tensors: Iterable[tuple[str, np.ndarray]]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors, key=lambda each: each[0]):
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _not_whole() -> UsageError:
    reason = "an image is in none of the folds that were trained, or in two: the images have changed in between"
    return UsageError("folds", None, reason, "start anew, without `resume`")
