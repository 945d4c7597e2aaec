"""Every forward pass over images; and the networks whose logits are stored by what they depend on."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.utils.data import DataLoader, Dataset

from lit_cnn.core.bars import ProgressLines
from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_hashes import hash_files
from lit_cnn.data.batches import keeps_mistakes
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.sources import ArrayImages
from lit_cnn.data.splits import Split
from lit_cnn.data.stored_options import completed
from lit_cnn.evaluation.cost import network_of
from lit_cnn.evaluation.members import checkpoint_of, checkpoint_sha256
from lit_cnn.evaluation.multi_crop import VIEWS, Block, blocks_of
from lit_cnn.evaluation.stored_logits import NetworkRecord, RunLogits, find_stored, read_record
from lit_cnn.portable import ImageClassifier
from lit_cnn.tracking import Store
from lit_cnn.tracking.queries import RunInfo
from lit_cnn.training.checkpoints import digest_of_weights
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.load import load_classifier

SCHEMA_VERSION = 2
"""Raised when stored logits would mean something else; old ones are then not found.

1: a file for each number of views. 2: a file for each block of views, which numbers of views share.
"""

_LEAST_PASS, _STEPS_SEEN = 16, 20
_PIXELS_A_PASS = 32 * 224**2  # on a CPU: 256 views of 224 px take 7 GB of activations, and are no faster
_PREPROCESSING = ("image_size", "in_channels", "mean", "std", "interpolation", "crop_pct")
_WHERE_GIVEN = ("pixel_range", "background")  # no part of the key of logits that were stored before there were any


Network = Callable[[torch.Tensor], torch.Tensor]
"""From views `(n, C, S, S)` uint8 to one row each, `(n, K)` float32: logits or probabilities."""


@dataclass(frozen=True)
class Loading:
    """How images are read and go through networks; it changes no result.

    Attributes:
        batch_size: Views in one forward pass, at most; on a CPU large ones go through in smaller parts.
        num_workers: Processes that decode images; images in memory need none.
        root: Folder of the images, if it is elsewhere than in training.

    Raises:
        UsageError: If a number is out of its range.
    """

    batch_size: int = 256
    num_workers: int = 2
    root: Path | str | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError("batch_size", self.batch_size, "give a whole number of at least 1")
        if self.num_workers < 0:
            raise UsageError("num_workers", self.num_workers, "give 0 or more")


LOADING = Loading()
"""The default of every function that takes one."""


class ViewImages(Dataset[torch.Tensor]):
    """Views of images: `__getitems__` gives `(N, V, C, S, S)` uint8, V over all blocks in turn.

    Args:
        images: `images[i]` is an `(H, W, C)` uint8 array.
        indices: `(N,)` which of them.
        preprocessing: `image_size`, `interpolation` and `crop_pct`; see `NetworkRecord`.
        blocks: Which views; by default the one of validation.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        indices: np.ndarray,
        preprocessing: Mapping[str, Any],
        blocks: Sequence[Block] = VIEWS[1],
    ) -> None:
        self.images = images
        self.indices = indices
        self.preprocessing = preprocessing
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.indices)

    @keeps_mistakes
    def __getitems__(self, positions: Sequence[int]) -> torch.Tensor:
        """Returns the views of the images at these positions."""
        return stack_views([self.views(position) for position in positions])

    def views(self, position: int) -> np.ndarray:
        """Returns the views of one image, `(V, S, S, C)` uint8.

        Raises:
            UsageError: If it cannot be decoded.
        """
        size, *how = (self.preprocessing[name] for name in ("image_size", "interpolation", "crop_pct"))
        return blocks_of(self.images[self.indices[position]], size, self.blocks, *how)


def forward_batches(
    network: Network, views: ViewImages, loading: Loading = LOADING, label: str = ""
) -> Iterator[torch.Tensor]:
    """Runs a network over views of images, in inference mode.

    Args:
        network: What is run, such as `logits_of(model)`.
        views: The views.
        loading: How many at a time, and how they are read.
        label: Of the progress bar.

    Yields:
        `(n, V, K)` float32 of some images, then of the next ones.
    """
    for batch in batches_of(views, views, loading, label):
        yield run_network(network, batch, loading)


def batches_of(dataset: Any, views: ViewImages, loading: Loading, label: str) -> Iterator[Any]:
    """Yields what a data set makes of all positions of views, batch by batch; shows how far it is."""
    num_views = sum(block.num_views for block in views.blocks)
    most = min(_most_views(views.preprocessing["image_size"], loading), _seen(len(views) * num_views))
    positions, step = np.arange(len(views)), max(1, most // num_views)
    batches: Any = [positions[start : start + step] for start in range(0, len(views), step)]
    # So few would keep one process busy and this one waiting.
    in_memory = isinstance(views.images, ArrayImages | list) or len(views) * num_views <= loading.batch_size
    loader: Any = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=0 if in_memory else loading.num_workers,
        collate_fn=lambda batch: batch,
    )
    return _progress(loader, batches, label)


def run_network(network: Network, views: torch.Tensor, loading: Loading) -> torch.Tensor:
    """Runs a network over views in inference mode: returns `(N, V, K)` float32 of `(N, V, C, S, S)` uint8."""
    # The views of one image may be more than a batch.
    with torch.inference_mode():
        flat = [network(part).cpu() for part in views.flatten(0, 1).split(_most_views(views.shape[-1], loading))]
        return torch.cat(flat).reshape(len(views), views.shape[1], -1)


def stack_views(views: Sequence[np.ndarray]) -> torch.Tensor:
    """Returns `(N, V, C, S, S)` uint8 of N arrays `(V, S, S, C)`."""
    return torch.from_numpy(np.stack(views)).permute(0, 1, 4, 2, 3).contiguous()


def logits_of(model: LitClassifier) -> Network:
    """Returns what gives a classifier's logits, on the device that it is on."""
    # Channels last is the faster layout for most networks.
    return lambda views: model(views.to(model.device, memory_format=torch.channels_last)).float()


def probabilities_of(classifier: ImageClassifier) -> Network:
    """Returns what gives a checkpoint's or an export's probabilities."""
    return lambda views: torch.tensor(classifier.probabilities(views.numpy()))


def to_device(model: LitClassifier) -> LitClassifier:
    """Moves a classifier to the GPU, if there is one."""
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Member:
    """A trained network whose logits are stored, and which is built where they are not enough.

    Attributes:
        record: What is known of it without that.
        data: The data module that its run was trained with.
        load: Returns the network on its device, in eval mode.
        run: Its run; None for a checkpoint that is no run's.
        run_logits: What its run keeps of logits; None where there is no run.
    """

    record: NetworkRecord
    data: ImageDataModule
    load: Callable[[], LitClassifier]
    run: RunInfo | None = None
    run_logits: RunLogits | None = None

    def images(self, split: Split) -> np.ndarray:
        """Returns `(N,)` int, the images of a split that it was not trained on."""
        return self.data.splits[split]

    @cached_property
    def model(self) -> LitClassifier:
        """The network; activation maps take its gradients, wherever it was first loaded."""
        with torch.inference_mode(False):
            return self.load()


def load_member(path: Path, root: Path | str | None = None) -> Member:
    """Loads a checkpoint as a member of an ensemble, on the GPU if there is one.

    Args:
        path: The checkpoint.
        root: Folder of the images, if it is elsewhere than in training.
    """
    model, of_run = load_classifier(path)
    config = yaml.safe_load(of_run["config"])
    cost = network_of(model)
    record = NetworkRecord(
        data={**config["data"], "seed": config["seed_everything"]},
        class_names=of_run["class_names"],
        preprocessing={name: model.hparams[name] for name in _PREPROCESSING}
        | {name: value for name in _WHERE_GIVEN if (value := model.hparams[name]) is not None},
        weights_digest=digest_of_weights(dict(model.net.state_dict())),
        parameters=cost.parameters,
        multiply_adds=cost.multiply_adds,
    )
    to_device(model)
    return Member(record, data_of(record.data, record.preprocessing, root), lambda: model)


def load_network(store: Store, run: RunInfo, splits: Sequence[Split], root: Path | str | None = None) -> Member:
    """Finds a tracked network as a member; its checkpoint is not read if there is a record of it.

    Args:
        store: Where its run is.
        run: As `find_networks` found it.
        splits: What it is going to classify; these images must be those of its training.
        root: Folder of the images, if it is elsewhere than in training.

    Raises:
        UsageError: If there is no checkpoint, or the images are others.
    """
    run_logits, sha256 = RunLogits(store, run), checkpoint_sha256(run)
    record = find_stored(_record_file(store, sha256), read_record, run_logits) if sha256 is not None else None
    if record is None:
        member = _load_unknown(store, run, root, run_logits)
    else:
        known = record
        member = Member(
            known,
            data_of(known.data, known.preprocessing, root),
            lambda: _load_known(store, run, known),
            run,
            run_logits,
        )
    for split in splits:
        if member.data.digests[split] != run.tags[f"{split}_split_digest"]:
            what = {"val": "validation"}.get(split, split)
            raise UsageError(
                "runs",
                run.run_id,
                f"the {what} images in {member.data.image_set.source} are not those that {run.name} was trained with "
                "(their digest differs)",
                "bring them back, or name their folder with `root`",
            )
    return member


def store_key(member: Member, image_digest: str, block: Block) -> str:
    """Returns the digest of what stored logits depend on: weights, preprocessing, precision, images, views, schema."""
    preprocessing = member.record.preprocessing
    if preprocessing["crop_pct"] == 1:  # what was stored before there was this option is found as it was
        preprocessing = {name: value for name, value in preprocessing.items() if name != "crop_pct"}
    depends_on = {
        "weights": member.record.weights_digest,
        "preprocessing": preprocessing,
        "precision": "fp32",
        "images": image_digest,
        "views": block,
        "schema": SCHEMA_VERSION,
    }
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()


def split_by_path(member: Member, split: Split) -> np.ndarray:
    """Returns `(N,)` int, the images of a split in the order of their paths: the same for every member."""
    paths = member.data.image_set.paths
    return np.array(sorted(member.images(split), key=lambda index: paths[index]))


def _record_file(store: Store, sha256: str) -> Path:
    """Returns the file of the record of the network in the checkpoint with this digest."""
    return store.predictions_dir / f"{sha256}.json"


def _load_unknown(store: Store, run: RunInfo, root: Path | str | None, run_logits: RunLogits) -> Member:
    path = checkpoint_of(store, run)
    (before,) = hash_files([path])
    member = load_member(path, root)
    # A run that goes on may have replaced the file meanwhile: its record would be that of other weights.
    if hash_files([path]) == [before]:
        run_logits.new_record = (_record_file(store, before), member.record)
    return replace(member, run=run, run_logits=run_logits)


def _load_known(store: Store, run: RunInfo, record: NetworkRecord) -> LitClassifier:
    model, _ = load_classifier(checkpoint_of(store, run))
    if digest_of_weights(dict(model.net.state_dict())) != record.weights_digest:
        reason = f"the checkpoint of {run.name} is not the one that its logits are of: it was replaced a moment ago"
        raise UsageError("runs", run.run_id, reason, "run this again")
    return to_device(model)


def data_of(options: Mapping[str, Any], preprocessing: Mapping[str, Any], root: Path | str | None) -> ImageDataModule:
    """Returns the images of a run as validation sees them.

    Args:
        options: Of its data, and the seed, as a checkpoint or a run keeps them.
        preprocessing: Of its network; see `NetworkRecord`.
        root: Folder of the images, if it is elsewhere than in training.
    """
    # Without what training did to images; what validation sees does not follow from it then.
    of_training = {"augment": None, "train_crop": "center", "crop_scale": None, "crop_ratio": None}
    chosen = {**completed(options), **of_training, "crop_pct": preprocessing["crop_pct"]}
    if root is not None:
        chosen["root"] = str(root)
    return ImageDataModule(**chosen)


def _most_views(image_size: int, loading: Loading) -> int:
    """Returns how many views may go through a network at once: on a CPU as many as take a gigabyte or so."""
    if torch.cuda.is_available():
        return loading.batch_size
    return min(loading.batch_size, max(1, _PIXELS_A_PASS // image_size**2))


def _seen(num_views: int) -> int:
    """Returns how many of these views are read at once: on a CPU few enough to see how far it is."""
    return num_views if torch.cuda.is_available() else max(_LEAST_PASS, num_views // _STEPS_SEEN)


def _progress(loader: Any, batches: Sequence[np.ndarray], label: str) -> Iterator[Any]:
    with progress_bar(sum(map(len, batches)), label) as bar:
        for batch, positions in zip(loader, batches, strict=True):
            yield batch
            bar.update(len(positions))


def progress_bar(num_images: int, label: str) -> Any:
    """Returns tqdm's bar over so many images, where somebody looks; in a log a line every ten seconds."""
    from tqdm import tqdm

    disable = bool(os.environ.get("TQDM_DISABLE"))
    if not disable and not sys.stderr.isatty():
        return ProgressLines(num_images, label)
    return tqdm(total=num_images, desc=label, unit="img", disable=disable, leave=False, dynamic_ncols=True)
