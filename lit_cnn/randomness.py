"""Randomness as a pure function: every draw follows from its key, never from a stream that lives somewhere.

The order of an epoch follows from (seed, epoch), the augmentation of an image from (seed, epoch, index), dropout from
(seed, global step), the initial weights from the seed. No generator's state survives in memory or in a worker, so a run
gives the same weights for any number of workers, and after a kill and a resume at any batch.

A key is turned into 128 bits by BLAKE2b, which then key a Philox counter-based generator (Salmon et al. 2011, "Parallel
random numbers: as easy as 1, 2, 3"): any key can be set without running the generator up to it.
"""

import hashlib
import random

import numpy as np

SCHEME_VERSION = 1
"""Raised when a release draws differently from the same key; kept in every checkpoint."""


def key_words(*key: int | str) -> tuple[int, int]:
    """Hashes a key to two unsigned 64-bit words, alike on every machine and in every release of this scheme."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    digest = hashlib.blake2b(text.encode(), digest_size=16, person=b"lit_cnn").digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


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


class KeyedRandom:
    """A NumPy generator and a `random.Random` that can be set to any key in about 8 microseconds.

    Building a generator for each image costs 20 times as much; writing the key into the state of one that exists is
    what makes a draw per (seed, epoch, index) affordable.
    """

    def __init__(self) -> None:
        self._bits = np.random.Philox(0)
        self.generator = np.random.Generator(self._bits)
        self.python_random = random.Random()
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
