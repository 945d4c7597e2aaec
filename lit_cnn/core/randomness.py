"""Randomness as a pure function: every draw follows from its key, never from a stream that lives somewhere.

The order of an epoch follows from (seed, epoch), the augmentation of an image from (seed, epoch, index), dropout from
(seed, global step), the initial weights from the seed. No generator's state survives in memory or in a worker, so a run
gives the same weights for any number of workers, and after a kill and a resume at any batch.

A key is turned into 128 bits by BLAKE2b, which then key a Philox counter-based generator (Salmon et al. 2011, "Parallel
random numbers: as easy as 1, 2, 3"): any key can be set without running the generator up to it. The same holds for
SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number generators"), from which a `random.Random` draws.
"""

import hashlib
import random
import struct
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

SCHEME_VERSION = 2
"""Raised when a release draws differently from the same key; kept in every checkpoint."""

_MASK = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15  # SplitMix64's step: 2**64 over the golden ratio, made odd


def key_words(*key: int | str) -> tuple[int, int]:
    """Hashes a key to two unsigned 64-bit words, alike on every machine and in every release of this scheme."""
    first, second = struct.unpack("<QQ", _hash(_text(*key)).digest())
    return first, second


def many_key_words(stream: str, keys: Iterable[tuple[int | str, ...]]) -> np.ndarray:
    """Returns `key_words(stream, *key)` for each of N keys: `(N, 2)` uint64.

    A beginning that neighbours share is hashed once: a key that differs in its last part alone takes a microsecond.
    """
    digests, beginning, begun = [], None, _hash("")
    for key in keys:
        if key[:-1] != beginning:
            beginning = key[:-1]
            begun = _hash(_text(stream, *beginning) + "\x1f")
        own = begun.copy()
        last = key[-1]
        own.update(b"int:%d" % last if isinstance(last, int) else f"str:{last}".encode())
        digests.append(own.digest())
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)


def _text(*key: int | str) -> str:
    return "\x1f".join([f"{type(part).__name__}:{part}" for part in key])


def _hash(text: str) -> "hashlib.blake2b":
    return hashlib.blake2b(text.encode(), digest_size=16, person=b"lit_cnn")


def generator(*key: int | str) -> np.random.Generator:
    """Returns a fresh NumPy generator that belongs to the key alone."""
    return np.random.Generator(np.random.Philox(key=np.array(key_words(*key), dtype=np.uint64)))


def epoch_permutation(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """Returns the order in which an epoch visits its images: shape `(num_images,)`, int64."""
    return generator("order", seed, epoch).permutation(num_images)


def balanced_order(seed: int, epoch: int, labels: np.ndarray) -> np.ndarray:
    """Returns the order of an epoch in which each class has its equal share of places, give or take one.

    A class of many images is thinned, anew in each epoch; one of few comes round again, and no image of it a second
    time before all have come once.

    Args:
        seed: The training seed.
        epoch: The epoch.
        labels: `(n,)` the label of each training image.

    Returns:
        `(n,)` int64: position p for the first time that image p comes, p + n for the second, p + 2n for the third. So a
        repetition has a key of its own to be augmented by.
    """
    draw = generator("balanced", seed, epoch)
    classes, counts = np.unique(labels, return_counts=True)
    quotas = np.full(len(classes), len(labels) // len(classes))
    quotas[draw.permutation(len(classes))[: len(labels) - quotas.sum()]] += 1
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    chosen = [np.empty(0, np.int64)]
    for positions, quota in zip(members, quotas, strict=True):
        rounds = -(-quota // len(positions))
        turns = [draw.permutation(positions) + turn * len(labels) for turn in range(rounds)]
        chosen.append(np.concatenate(turns)[:quota] if turns else chosen[0])
    return draw.permutation(np.concatenate(chosen))


def torch_seed(*key: int | str) -> int:
    """Returns a seed for `torch.manual_seed` in [0, 2**63)."""
    return key_words(*key)[0] >> 1


class SplitMixRandom(random.Random):
    """A `random.Random` over SplitMix64, whose seed is its state.

    Python's own Mersenne Twister takes 6 microseconds to seed, far more than an image's few draws are worth.
    """

    def seed(self, a: Any = None, version: int = 2) -> None:
        """Sets the state to a whole number, modulo 2**64; None is 0: nothing is drawn from the clock."""
        self._state = int(a or 0) & _MASK
        self.gauss_next = None

    def random(self) -> float:
        """Returns the next number in [0, 1), a multiple of 2**-53."""
        return (self.getrandbits(64) >> 11) * 2.0**-53

    def getrandbits(self, k: int, /) -> int:
        """Returns the next k bits, as a number in [0, 2**k)."""
        bits, num_words = 0, -(-k // 64)
        for _ in range(num_words):
            self._state = (self._state + _GAMMA) & _MASK
            bits = bits << 64 | _mix(self._state)
        return bits >> 64 * num_words - k

    def getstate(self) -> tuple[Any, ...]:
        """Returns what `setstate` takes."""
        return self._state, self.gauss_next

    def setstate(self, state: tuple[Any, ...]) -> None:
        """Goes on where `getstate` was called."""
        self._state, self.gauss_next = state


class KeyedRandom:
    """A NumPy generator and a `random.Random` that can be set to any key in about 4 microseconds.

    Building a generator for each image costs 20 times as much; writing the key into the state of one that exists is
    what makes a draw per (seed, epoch, index) affordable.
    """

    def __init__(self) -> None:
        self._bits = np.random.Philox(0)
        self.generator = np.random.Generator(self._bits)
        self.python_random = SplitMixRandom()
        self._state = self._bits.state
        self._state["state"]["counter"][:] = 0
        # 4 of 4 buffered words used, no spare 32-bit half: the next draw starts the counter of the new key.
        self._state["buffer_pos"] = 4
        self._state["has_uint32"] = 0

    def rekey(self, *key: int | str) -> None:
        """Sets both generators to the start of the key's own stream."""
        first, second = key_words(*key)
        self._state["state"]["key"][:] = first, second
        self._bits.state = self._state
        self.python_random.seed(first ^ second)


def first_uniforms(stream: str, keys: Sequence[tuple[int, ...]], count: int) -> np.ndarray:
    """Returns what `KeyedRandom.python_random` gives first after `rekey(stream, *key)`, for each of N keys.

    It takes about a microsecond for each key, if neighbours differ in their last number alone.

    Returns:
        `(N, count)` float64 in [0, 1).
    """
    words = many_key_words(stream, keys)
    states = (words[:, :1] ^ words[:, 1:]) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    return (_mix(states) >> 11) * 2.0**-53


Word = TypeVar("Word", int, np.ndarray)


def _mix(state: Word) -> Word:
    """SplitMix64's output for a state, a number in [0, 2**64) or an array of uint64."""
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
    return state ^ state >> 31
