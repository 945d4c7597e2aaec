"""Logits of a checkpoint's network: computed once per image and view, kept under the digest of what they depend on."""

import csv
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch.utils.data import DataLoader, Dataset

from lit_cnn.batches import stack_images
from lit_cnn.checkpoints import digest_of_weights, load_checkpoint
from lit_cnn.classifier import LitClassifier
from lit_cnn.datamodule import ImageDataModule
from lit_cnn.datasets import ArrayImages, ImageSet, list_images, read_image
from lit_cnn.errors import UsageError
from lit_cnn.evaluation.members import checkpoint_of
from lit_cnn.evaluation.multi_crop import VIEWS, Block, blocks_of
from lit_cnn.exported import ImageClassifier
from lit_cnn.files import replace_atomically
from lit_cnn.splits import Split
from lit_cnn.tracking import Store
from lit_cnn.tracking.queries import RunInfo
from lit_cnn.transforms import Interpolation, resize_and_center_crop

SCHEMA_VERSION = 2
"""Raised when stored logits would mean something else; old ones are then not found.

1: a file for each number of views. 2: a file for each block of views, which numbers of views share.
"""

UNCERTAIN = "uncertain"
"""What `predict_folder` writes in place of a class that is not probable enough."""


@dataclass(frozen=True)
class Member:
    """A trained network, ready to predict.

    Attributes:
        model: On its device, in eval mode.
        data: The data module that its run was trained with.
        class_names: In label order.
        digests: Digests of the data and its splits, as its run recorded them.
        weights_digest: See `digest_of_weights`.
    """

    model: LitClassifier
    data: ImageDataModule
    class_names: list[str]
    digests: dict[str, str]
    weights_digest: str

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What happens to an image before the network sees it."""
        names = ("image_size", "in_channels", "mean", "std", "interpolation")
        return {name: self.model.hparams[name] for name in names}


def load_classifier(path: Path) -> tuple[LitClassifier, dict[str, Any]]:
    """Rebuilds a classifier from its checkpoint.

    Returns:
        The classifier in eval mode on the CPU, and what the checkpoint says of its run.

    Raises:
        UsageError: If the file is no checkpoint of lit_cnn.
    """
    checkpoint = load_checkpoint(path)
    if "lit_cnn" not in checkpoint:
        raise UsageError(f"--ckpt_path {path}: holds no configuration of lit_cnn; give one that lit-cnn fit wrote")
    # The weights come from the file: nothing is fetched that would only be overwritten.
    model = LitClassifier(**{**checkpoint["hyper_parameters"], "weights": None, "transfer": None})
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval(), checkpoint["lit_cnn"]


def load_member(path: Path, root: Path | None = None) -> Member:
    """Loads a checkpoint as a member of an ensemble, on the GPU if there is one.

    Args:
        path: The checkpoint.
        root: Folder of the images, if it is elsewhere than in training.
    """
    model, record = load_classifier(path)
    config = yaml.safe_load(record["config"])
    options = {**config["data"], "augment": None, "train_crop": "center", "seed": config["seed_everything"]}
    if root is not None:
        options["root"] = str(root)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights_digest = digest_of_weights(dict(model.net.state_dict()))
    return Member(
        model.to(device), ImageDataModule(**options), record["class_names"], record["digests"], weights_digest
    )


def load_network(store: Store, run: RunInfo, splits: Sequence[Split], root: Path | None, option: str) -> Member:
    """Loads a tracked network as a member.

    Args:
        store: Where its run is.
        run: As `find_networks` found it.
        splits: What it is going to be asked about; these images must be those of its training.
        root: Folder of the images, if it is elsewhere than in training.
        option: What names the run, for messages.

    Raises:
        UsageError: If there is no checkpoint, or the images are others.
    """
    member = load_member(checkpoint_of(store, run), root)
    for split in splits:
        if member.data.digests[split] != run.tags[f"{split}_split_digest"]:
            what = {"val": "validation"}.get(split, split)
            raise UsageError(
                f"{option} {run.run_id}: the {what} images in {member.data.image_set.source} are not those that "
                f"{run.name} was trained with (their digest differs); bring them back, or name their folder with --root"
            )
    return member


def store_key(member: Member, image_digest: str, block: Block) -> str:
    """Returns the digest of what stored logits depend on: weights, preprocessing, precision, images, views, schema."""
    depends_on = {
        "weights": member.weights_digest,
        "preprocessing": member.preprocessing,
        "precision": "fp32",
        "images": image_digest,
        "views": block,
        "schema": SCHEMA_VERSION,
    }
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()


def predict_views(
    member: Member,
    indices: np.ndarray,
    view_counts: Sequence[int],
    folder: Path,
    batch_size: int = 256,
    num_workers: int = 2,
    label: str = "",
) -> dict[int, np.ndarray]:
    """Returns a member's logits for each number of views, computed only where they are not stored.

    They are stored by blocks of views: 1 and 2 share the first view, 5 and 10 the first five.

    Args:
        member: The network.
        indices: `(N,)` which images of the member's data, in the order wanted.
        view_counts: Known numbers of views, such as 1 and 10.
        folder: Where logits are stored.
        batch_size: Views per forward pass.
        num_workers: Processes that decode images; images in memory need none.
        label: What the progress bar calls this member.

    Returns:
        Logits `(V, N, num_classes)` float32 for each V in `view_counts`.
    """
    blocks = list(dict.fromkeys(block for count in view_counts for block in VIEWS[count]))
    files = _files(member, indices, blocks, folder)
    logits = {block: stored for block, file in files.items() if (stored := read_logits(file)) is not None}
    missing = [block for block in blocks if block not in logits]
    if missing:
        views = ViewImages(member.data.image_set, indices, missing, member.preprocessing)
        for block, computed in _forward(member, views, batch_size, num_workers, label).items():
            write_logits(files[block], computed)
            logits[block] = computed
    return {count: np.concatenate([logits[block] for block in VIEWS[count]]) for count in view_counts}


def are_stored(member: Member, indices: np.ndarray, num_views: int, folder: Path) -> bool:
    """Whether `predict_views` would find the logits of these images with so many views."""
    return all(file.is_file() for file in _files(member, indices, VIEWS[num_views], folder).values())


def write_logits(file: Path, logits: np.ndarray) -> None:
    """Writes logits with their SHA-256 inside, whole or not at all."""
    logits = np.ascontiguousarray(logits)
    with replace_atomically(file) as temporary:
        save_file({"logits": logits}, temporary, {"sha256": hashlib.sha256(logits.tobytes()).hexdigest()})


def read_logits(file: Path) -> np.ndarray | None:
    """Returns stored logits, or None if there are none or the file is not as it was written."""
    try:
        with safe_open(file, "numpy") as stored:
            logits: np.ndarray = stored.get_tensor("logits")
            digest = (stored.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    return logits if hashlib.sha256(logits.tobytes()).hexdigest() == digest else None


class FolderImages(Dataset[torch.Tensor]):
    """Images without labels, as validation sees them: what `lit-cnn predict` reads.

    Args:
        files: The image files.
        size: S, pixels of the square.
        in_channels: 1 (gray) or 3 (RGB).
        interpolation: How to resize.
    """

    def __init__(self, files: Sequence[Path], size: int, in_channels: int, interpolation: Interpolation) -> None:
        self.files = files
        self.size = size
        self.in_channels = in_channels
        self.interpolation = interpolation

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, positions: Sequence[int]) -> torch.Tensor:
        """Returns images `(N, C, S, S)` uint8."""
        images = [read_image(self.files[position], self.in_channels) for position in positions]
        return stack_images([resize_and_center_crop(image, self.size, self.interpolation) for image in images])


class ViewImages(Dataset[torch.Tensor]):
    """Views of images: `__getitems__` gives `(N, V, C, S, S)` uint8, V over all blocks in turn.

    Args:
        image_set: All images.
        indices: `(N,)` which of them.
        blocks: Which views.
        preprocessing: See `Member.preprocessing`.
    """

    def __init__(
        self, image_set: ImageSet, indices: np.ndarray, blocks: Sequence[Block], preprocessing: dict[str, Any]
    ) -> None:
        self.images = image_set.images
        self.indices = indices
        self.blocks = blocks
        self.size: int = preprocessing["image_size"]
        self.interpolation: Interpolation = preprocessing["interpolation"]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, positions: Sequence[int]) -> torch.Tensor:
        """Returns the views of the images at these positions."""
        images = [self.images[index] for index in self.indices[positions]]
        views = [blocks_of(image, self.size, self.blocks, self.interpolation) for image in images]
        return torch.from_numpy(np.stack(views)).permute(0, 1, 4, 2, 3).contiguous()


def checkpoint_classifier(path: Path) -> ImageClassifier:
    """Returns what a checkpoint's network says of images, on the GPU if there is one; see `load_classifier`."""
    model, record = load_classifier(path)
    model.to("cuda" if torch.cuda.is_available() else "cpu")

    def probabilities(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(images).to(model.device)).float().softmax(1).cpu().numpy()

    seen = {name: model.hparams[name] for name in ("image_size", "in_channels", "interpolation")}
    return ImageClassifier(record["class_names"], **seen, probabilities=probabilities)


def predict_folder(
    classifier: ImageClassifier,
    folder: Path,
    output: Path,
    batch_size: int,
    num_workers: int,
    min_confidence: float | None = None,
) -> int:
    """Classifies every image of a folder into a CSV file of file, class, probability.

    Args:
        classifier: What is asked.
        folder: Searched with its sub-folders.
        output: The CSV file; replaced if it is there.
        batch_size: Images per forward pass.
        num_workers: Processes that decode images.
        min_confidence: In [0, 1]: an image whose most probable class is less probable is of the class `uncertain`, and
            a further column, `best_class`, names the most probable one of each image.

    Returns:
        The number of images.

    Raises:
        UsageError: If there are no images, one cannot be decoded, or the file cannot be written.
    """
    if batch_size < 1 or num_workers < 0:
        raise UsageError(f"--batch_size {batch_size} --num_workers {num_workers}: give at least 1 and at least 0")
    files = list_images(folder)
    images = FolderImages(files, classifier.image_size, classifier.in_channels, classifier.interpolation)
    probabilities = classify(classifier, images, len(files), batch_size, num_workers, "predicting")
    header, rows = ["file", "class", "probability"], []
    for file, of_image in zip(files, probabilities, strict=True):
        best, probability = classifier.class_names[int(of_image.argmax())], float(of_image.max())
        is_uncertain = min_confidence is not None and probability < min_confidence
        rows.append([file.relative_to(folder).as_posix(), UNCERTAIN if is_uncertain else best, f"{probability:.6f}"])
        if min_confidence is not None:
            rows[-1].append(best)
    if min_confidence is not None:
        header.append("best_class")
    try:
        with replace_atomically(output) as temporary, temporary.open("w", newline="", encoding="utf-8") as table:
            csv.writer(table).writerows([header, *rows])
    except OSError as error:
        raise UsageError(f"--output {output}: cannot be written ({error.strerror}); give another file") from error
    return len(rows)


def classify(
    classifier: ImageClassifier,
    images: Dataset[torch.Tensor],
    num_images: int,
    batch_size: int,
    num_workers: int,
    label: str,
) -> np.ndarray:
    """Returns a classifier's probabilities, `(N, num_classes)`.

    Args:
        classifier: What is asked.
        images: `FolderImages`, or `ViewImages` with one view.
        num_images: N.
        batch_size: Images per forward pass.
        num_workers: Processes that decode images.
        label: What the progress bar says.
    """
    batches = _batches(images, num_images, batch_size, num_workers)
    # The axis of the one view, where there is one, goes.
    parts = [classifier.probabilities(batch.flatten(0, -4).numpy()) for batch in _progress(batches, num_images, label)]
    return np.concatenate(parts)


def _files(member: Member, indices: np.ndarray, blocks: Sequence[Block], folder: Path) -> dict[Block, Path]:
    image_set = member.data.image_set
    listed = "\n".join(f"{image_set.paths[index]}\t{image_set.hashes[index]}" for index in indices)
    image_digest = hashlib.sha256(listed.encode()).hexdigest()
    return {block: folder / f"{store_key(member, image_digest, block)}.safetensors" for block in blocks}


def _forward(
    member: Member, views: ViewImages, batch_size: int, num_workers: int, label: str
) -> dict[Block, np.ndarray]:
    counts = [block.num_views for block in views.blocks]
    num_views = sum(counts)
    if isinstance(views.images, ArrayImages):
        num_workers = 0
    batches = _batches(views, len(views), max(1, batch_size // num_views), num_workers)
    parts = []
    with torch.inference_mode():
        for batch in _progress(batches, len(views), label):
            # The views of one image may be more than a batch.
            flat = [
                member.model(part.to(member.model.device)).float().cpu()
                for part in batch.flatten(0, 1).split(batch_size)
            ]
            parts.append(torch.cat(flat).reshape(len(batch), num_views, -1))
    logits = torch.cat(parts).transpose(0, 1).numpy()
    ends = np.cumsum(counts)
    return {block: logits[end - block.num_views : end] for block, end in zip(views.blocks, ends, strict=True)}


def _batches(images: Dataset[torch.Tensor], num_images: int, batch_size: int, num_workers: int) -> Any:
    positions = np.arange(num_images)
    batches: Any = [positions[start : start + batch_size] for start in range(0, num_images, batch_size)]
    return DataLoader(images, batch_sampler=batches, num_workers=num_workers, collate_fn=lambda batch: batch)


def _progress(batches: Iterable[torch.Tensor], num_images: int, label: str) -> Iterator[torch.Tensor]:
    from tqdm import tqdm

    # A bar where somebody looks; nothing in a log.
    disable = not sys.stderr.isatty() or bool(os.environ.get("TQDM_DISABLE"))
    with tqdm(total=num_images, desc=label, unit="img", disable=disable, leave=False) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))
