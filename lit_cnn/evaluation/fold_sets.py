"""A run of folds as one member: out of fold stands for val, and the mean of its networks for test."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.data.splits import Split
from lit_cnn.evaluation.calibration import logarithm
from lit_cnn.evaluation.members import is_fold_set, networks_of
from lit_cnn.evaluation.outputs import Reader
from lit_cnn.evaluation.predict import Member, load_network
from lit_cnn.tracking import Store, queries
from lit_cnn.tracking.queries import RunInfo
from lit_cnn.training.out_of_fold import FOLDER, LOGITS, read_out_of_fold

ReadersOf = Callable[[Member, np.ndarray], Mapping[int, Reader]]
"""From one network and `(n,)` images of its data to what reads its outputs of them, for each number of views."""


@dataclass(frozen=True)
class FoldSet(Member):
    """The networks of a run of folds, of which each has not been trained on the images of its own fold.

    Attributes:
        networks: Of each round of folds in turn, fold by fold; a round has each image that is not test once.
    """

    networks: tuple[Member, ...] = ()

    @property
    def num_networks(self) -> int:
        """How many networks are run for one image."""
        return len(self.networks)

    def images(self, split: Split) -> np.ndarray:
        """Returns the images of a split; those of all folds stand for val."""
        return np.concatenate(self.data.splits.folds) if split == "val" else super().images(split)

    @property
    def num_rounds(self) -> int:
        """How many networks there are that have not been trained on an image that is not test."""
        return len(self.networks) // len(self.data.splits.folds)

    def readers(self, split: Split, indices: np.ndarray, readers_of: ReadersOf) -> dict[int, Reader]:
        """Returns what reads the set's outputs, for each number of views.

        The probabilities are the means over the networks that are asked; the logits are their logarithm.

        Args:
            split: Of which the images are: each is shown to all networks, or, of val, to those that have not been
                trained on it.
            indices: `(n,)` images in the order of their paths.
            readers_of: Reads one network's outputs.
        """
        if split != "val":
            return _mean([(readers_of(network, indices), None) for network in self.networks], 1 / len(self.networks))
        parts = []
        for network in self.networks:
            inside = np.isin(indices, network.data.splits.val)
            if inside.any():
                parts.append((readers_of(network, indices[inside]), np.flatnonzero(inside)))
        return _mean(parts, 1 / self.num_rounds)


def _mean(parts: Sequence[tuple[Mapping[int, Reader], np.ndarray | None]], weight: float) -> dict[int, Reader]:
    """Returns readers of a weighted sum of probabilities.

    Args:
        parts: What reads a network's outputs, and the places `(m,)`, ascending, of its images among all; None for all.
        weight: Of each network.
    """

    def reader(count: int) -> Reader:
        def read(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
            total: np.ndarray | None = None
            for readers, places in parts:
                # Its images are in the same order, so those of a range are a range.
                low, high = (start, stop) if places is None else np.searchsorted(places, (start, stop)).tolist()
                if low == high:
                    continue
                probabilities, _ = readers[count](low, high)
                if total is None:
                    total = np.zeros((stop - start, probabilities.shape[1]))
                total[slice(None) if places is None else places[low:high] - start] += weight * probabilities
            assert total is not None
            return total, logarithm(total)

        return read

    return {count: reader(count) for count in parts[0][0]}


def load(store: Store, run: RunInfo, splits: Sequence[Split], root: Path | str | None = None) -> Member:
    """Finds a tracked network, or the networks of a run of folds, as a member; see `predict.load_network`.

    Raises:
        UsageError: If a checkpoint is not there, or the images are others.
    """
    if not is_fold_set(run):
        return load_network(store, run, splits, root)
    networks = [load_network(store, network, (), root) for network in networks_of(store, run)]
    first = networks[0]
    for network in networks:  # the same images, read once
        if network is not first:
            network.data.image_set = first.data.image_set
        assert network.run is not None
        for split in splits:
            if network.data.digests[split] != network.run.tags[f"{split}_split_digest"]:
                reason = f"the images in {first.data.image_set.source} are not those that {run.name} was trained with"
                remedy = "bring them back, or name their folder with `root`"
                raise UsageError("runs", run.run_id, f"{reason} (their digest differs)", remedy)
    digests = "\n".join(network.record.weights_digest for network in networks)
    record = replace(
        first.record,
        weights_digest=hashlib.sha256(digests.encode()).hexdigest(),
        parameters=sum(network.record.parameters for network in networks),
        multiply_adds=sum(network.record.multiply_adds for network in networks),
    )
    return FoldSet(record, first.data, lambda: first.model, run, None, tuple(networks))


def with_shared_val(store: Store, runs: Sequence[RunInfo], root: Path | str | None = None) -> list[RunInfo]:
    """Returns runs with a `best/val/acc` that is of the same images for all of them, in the same order.

    Where there are runs of folds and runs without, the former have theirs out of fold on the val images of the latter.

    Args:
        store: Where they are.
        runs: With the same val images, but for those of folds.
        root: Folder of the images, if it is elsewhere than in training.

    Raises:
        UsageError: If an image of that val is in no fold, or the images are others.
    """
    plain = next((run for run in runs if not is_fold_set(run)), None)
    if plain is None or not any(map(is_fold_set, runs)):
        return list(runs)
    data = load_network(store, plain, ["val"], root).data
    own = {data.image_set.paths[index] for index in data.splits.val}
    return [_on(own, store, run, plain) if is_fold_set(run) else run for run in runs]


def _on(own: set[str], store: Store, run: RunInfo, plain: RunInfo) -> RunInfo:
    """Returns a run of folds with what it gets right out of fold of the val images of a run without."""
    found = read_out_of_fold(queries.download_artifact(store, run, f"{FOLDER}/{LOGITS}"))
    if found is None:
        raise UsageError("runs", run.run_id, f"the out-of-fold logits of {run.name} are damaged", "train it anew")
    inside = np.array([path in own for path in found.paths])
    if inside.sum() < len(own):
        raise _in_no_fold(len(own) - int(inside.sum()), plain, run)
    return replace(run, metrics={**run.metrics, "best/val/acc": float(found.correct[inside].mean())})


def _in_no_fold(number: int, plain: RunInfo, run: RunInfo) -> UsageError:
    what = f"{number} validation images of {plain.name} are in no fold of {run.run_id} ({run.name})"
    return UsageError("runs", plain.run_id, what, "take only runs of folds, or only runs without")


def networks_in(member: Member) -> Sequence[Member]:
    """Returns the networks that a member is: several for a run of folds."""
    return member.networks if isinstance(member, FoldSet) else [member]


def common_images(members: Sequence[Member], split: Split) -> list[np.ndarray]:
    """Returns for each member `(n,)` int, the images of a split that all have, in the order of their paths.

    Of runs with a val of their own and runs of folds these are the images of that val, which no network that is asked
    has been trained on.

    Raises:
        UsageError: If an image of that val is in no fold.
    """
    found = []
    plain = next((member for member in members if not isinstance(member, FoldSet)), None)
    own = {plain.data.image_set.paths[index] for index in plain.images(split)} if plain is not None else set()
    for member in members:
        paths, indices = member.data.image_set.paths, member.images(split)
        if plain is not None and split == "val" and isinstance(member, FoldSet):
            indices = np.array([index for index in indices if paths[index] in own], np.int64)
            if len(indices) < len(own):
                assert plain.run is not None and member.run is not None
                raise _in_no_fold(len(own) - len(indices), plain.run, member.run)
        found.append(np.array(sorted(indices, key=lambda index: paths[index]), np.int64))
    return found
