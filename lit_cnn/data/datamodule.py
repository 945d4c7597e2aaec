"""`ImageDataModule`: splits, worker processes and the order of images, all of it a pure function of seeds."""

import sys
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lit_cnn.core.errors import UsageError, at_least
from lit_cnn.core.resize import Interpolation
from lit_cnn.data.batches import Batch, EvalImages, TrainImages, batch_loader
from lit_cnn.data.inspection import without_bad_images
from lit_cnn.data.normalization import Normalization
from lit_cnn.data.pixel_statistics import PixelStatistics, cached, keep, measure_pixels
from lit_cnn.data.sampling import Sampler, TrainBatches, next_batch
from lit_cnn.data.sources import (
    MAX_PIXELS,
    ArrayImages,
    EncodedImages,
    ImageSet,
    check_image_set,
    check_source,
    load_image_set,
)
from lit_cnn.data.splits import Splits, draw_splits, manifest, manifest_digest
from lit_cnn.data.transforms import TrainCrop, TrainTransform

EVAL_BATCH_SIZE = 256
Check = Literal["off", "quick", "full"]


class ImageDataModule(pl.LightningDataModule):
    """Images with their split into train, val and test, for any Lightning Trainer.

    A batch is images `(N, C, S, S)`, uint8, and labels `(N,)`, int64. `LitClassifier` normalises the images on its
    device; another module does so itself, by `mean` and `std` of pixels in [0, 1].

    Example:
        >>> import lit_cnn
        >>> data = lit_cnn.ImageDataModule("digits", image_size=32, num_workers=0)
        >>> data.num_classes, data.in_channels
        (10, 1)
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, images.dtype
        (torch.Size([128, 1, 32, 32]), torch.uint8)

    Args:
        dataset: `digits` (embedded), `fashion_mnist`, `image_folder`, `manifest` (a CSV or Parquet file), `idx` (a
            folder of four IDX files), `hf_disk` (a folder that Hugging Face's save_to_disk wrote), `webdataset` (tar
            shards) or `torchvision/NAME` (one of torchvision's, such as CIFAR10).
        root: Where the images are: a folder or a file; digits take none, fashion_mnist can do without.
        image_size: Pixels of the square that the network takes; images are resized to it. By default that of the
            weights that training starts from, else 32.
        in_channels: 1 (gray) or 3 (RGB); by default what the source has, 3 for a folder.
        batch_size: Training images per step, over all devices.
        num_workers: Worker processes that decode and augment; the result does not depend on it.
        val_fraction: Share of the images that are not test set aside for validation, where the source has no val.
        test_fraction: Share of all images set aside for the test, where the source has no test.
        split_seed: Seed of the split; independent of the training seed, unless this is the word `seed`: then each of
            `--seeds` has its own val and (with `limit_train`, say) training images, and the standard deviation over
            seeds includes which images one happens to have. What the source prescribes stays.
        limit_train: Train on that many images in all, stratified; the first 50 are among the first 500.
        sampler: `shuffled`: an epoch is every training image once; `balanced`: as many, but equally many of each class.
        train_crop: `center`, `random` or `random_resized`: how a training image becomes a square.
        augment: albumentations transforms by class_path, applied to the training square in this order.
        views: Cycle through that many fixed views of each training image: epoch e sees view e modulo this number.
            By default each epoch draws anew. Features of a frozen backbone can be cached for fixed views only.
        interpolation: `area`, `bilinear` or `bicubic`; by default that of the weights, else `area`.
        normalize: By whose mean and standard deviation: `train`, the training images' (each is decoded once, the result
            remembered), or `imagenet`; by default those that the weights expect, else `imagenet` for files and `train`
            for images in memory.
        mean: Mean per channel of pixels in [0, 1]; wins over `normalize`.
        std: Standard deviation per channel, likewise.
        class_names: The order of the classes; all of the data's, perhaps with more. By default the source's own, or
            sorted. Where the source has numbers only, these are the names of 0, 1, 2 and so on. In
            a folder of images, a folder called so is a class, though it sounds like a split.
        weights_expect: What the weights that training starts from expect: image_size, mean, std, interpolation; filled
            in by the command line. Each of the options above wins over it.
        check: What is looked at before the first step: `quick` (headers, copies by their bytes, classes), `full` (every
            image decoded, near copies too) or `off`. See `lit_cnn.data.audit.check_data`.
        on_bad_image: `raise` ends the run at a file that cannot be decoded. `skip` decodes every file once (what was
            found is remembered), leaves such files out and keeps a list with the run; of a test split that the source
            gives, none is left out: a run with a bad one ends. Where test is drawn here, they go before the draw.
        max_pixels: Images of more pixels are bad; by default Pillow's limit, a quarter of a gigabyte as RGB.
        reduced_decode: Decode a JPEG in colour at a half, a quarter or an eighth of its size for training, where the
            part of it that a view shows is then still no smaller than the view. Faster for large photographs; its
            pixels are averages, so a run's figures change a little. Validation and test see whole images.
        outside_root: Whether a manifest or Hugging Face's folder may refer to files outside of its own folder.
        columns: A manifest's columns by what they are for: `image`, `label`, `split`, `group`; else found by name.
        seed: The training seed, for order and augmentation.

    Attributes:
        options: The arguments, as they were given.

    Raises:
        UsageError: If an option cannot be used, or the images are not there.
    """

    def __init__(
        self,
        dataset: str = "digits",
        root: str | Path | None = None,
        image_size: int | None = None,
        in_channels: Literal[1, 3] | None = None,
        batch_size: int = 128,
        num_workers: int = 2,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int | Literal["seed"] = 0,
        limit_train: int | None = None,
        sampler: Sampler = "shuffled",
        train_crop: TrainCrop = "center",
        # Of Any, jsonargparse would build the transforms inside a OneOf itself.
        augment: list[dict] | None = None,  # type: ignore[type-arg]
        views: int | None = None,
        interpolation: Interpolation | None = None,
        normalize: Literal["train", "imagenet"] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        class_names: list[str] | None = None,
        weights_expect: dict[str, Any] | None = None,
        columns: dict[str, str] | None = None,
        check: Check = "quick",
        on_bad_image: Literal["raise", "skip"] = "raise",
        max_pixels: int = MAX_PIXELS,
        reduced_decode: bool = False,
        outside_root: bool = False,
        seed: int = 0,
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.options: dict[str, Any] = options
        at_least(1, batch_size=batch_size, limit_train=limit_train, views=views, max_pixels=max_pixels)
        at_least(0, num_workers=num_workers)
        for option, share in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0 < share < 1:
                raise UsageError(option, share, "give a share above 0 and below 1, for example 0.1")
        check_source(dataset)
        self.dataset = dataset
        self.root = Path(root).expanduser() if root is not None else None
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.sampler = sampler
        self.views = views
        self.expect_images(weights_expect)
        self.check: Check = check
        self.on_bad_image = on_bad_image
        self.reduced_decode = reduced_decode
        self.seed = seed
        self.skipped: dict[str, str] = {}  # path -> reason, of images that are left out
        source = (dataset, self.root, in_channels, class_names, columns)
        self._load = partial(load_image_set, *source, max_pixels=max_pixels, checked=False, outside_root=outside_root)
        split_seed = seed if split_seed == "seed" else split_seed
        self._split = (val_fraction, test_fraction, split_seed, limit_train)
        self._cached: tuple[Dataset[Batch], Dataset[Batch]] | None = None
        self._has_told_why = False  # the search for a batch size asks for many loaders

    def expect_images(self, expected: Mapping[str, Any] | None) -> None:
        """Serves the images that weights expect, in all that was not given otherwise; see `weights_expect`.

        Args:
            expected: `image_size`, `mean`, `std`, `interpolation`; None is what this data module has by itself.
        """
        self.weights_expect, given = dict(expected or {}), self.options
        size = self.weights_expect.get("image_size", 32) if given["image_size"] is None else given["image_size"]
        at_least(1, image_size=size)
        self.image_size: int = size
        self.interpolation: Interpolation = given["interpolation"] or self.weights_expect.get("interpolation", "area")
        self.train_transform = TrainTransform(size, given["train_crop"], given["augment"] or (), self.interpolation)
        expects = self.weights_expect.get
        self._normalization = Normalization(
            given["normalize"], given["mean"], given["std"], expects("mean"), expects("std")
        )
        for name in ("pixel_statistics", "_mean_and_std"):
            self.__dict__.pop(name, None)

    @cached_property
    def image_set(self) -> ImageSet:
        """The images, read at first use; without the bad ones, if these are to be skipped."""
        found = self.load()
        if self.on_bad_image == "skip":
            found, self.skipped = without_bad_images(found)
        check_image_set(found)
        if self.reduced_decode and not isinstance(found.images, EncodedImages):
            raise UsageError("reduced_decode", True, "these images are decoded already", "leave it out")
        self.train_transform.check_channels(found.in_channels)
        return found

    def load(self) -> ImageSet:
        """Reads the images, whatever may be wrong with them."""
        return self._load()

    @cached_property
    def splits(self) -> Splits:
        """Who is in train, val and test."""
        return self.split(self.image_set)

    def split(self, image_set: ImageSet) -> Splits:
        """Draws what the source does not prescribe of train, val and test."""
        return draw_splits(image_set, *self._split)

    @cached_property
    def manifest(self) -> str:
        """The split as CSV text; see `lit_cnn.data.splits.manifest`."""
        return manifest(self.image_set, self.splits)

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 digests of the data, of the split's manifest and of the images of val and of test."""
        return {
            "data": self.image_set.digest,
            "split": manifest_digest(self.manifest),
            "val": self.image_set.digest_of(self.splits.val),
            "test": self.image_set.digest_of(self.splits.test),
        }

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.image_set.class_names)

    @property
    def class_names(self) -> list[str]:
        """The class names in label order."""
        return list(self.image_set.class_names)

    @property
    def class_counts(self) -> list[int]:
        """The number of training images of each class."""
        return np.bincount(self.image_set.labels[self.splits.train], minlength=self.num_classes).tolist()

    @property
    def in_channels(self) -> int:
        """1 (gray) or 3 (RGB)."""
        return self.image_set.in_channels

    @property
    def mean(self) -> list[float]:
        """Mean per channel of pixels in [0, 1]."""
        return self._normalization.given("mean", self.in_channels) or self._mean_and_std[0]

    @property
    def std(self) -> list[float]:
        """Standard deviation per channel of pixels in [0, 1]."""
        return self._normalization.given("std", self.in_channels) or self._mean_and_std[1]

    @cached_property
    def _mean_and_std(self) -> tuple[list[float], list[float]]:
        in_memory = isinstance(self.image_set.images, ArrayImages)
        return self._normalization.chosen(self.in_channels, in_memory, lambda: self.pixel_statistics)

    @cached_property
    def pixel_statistics(self) -> PixelStatistics:
        """Those of the training images: in memory as they are, from files as validation sees them; remembered."""
        images, train = self.image_set.images, self.splits.train
        if isinstance(images, ArrayImages):
            parts = np.array_split(np.sort(train), -(-len(train) // 4096))
            return measure_pixels(images.array[part] for part in parts)
        key = (self.image_set.digest_of(train), self.in_channels, self.image_size, self.interpolation)
        if (statistics := cached(key)) is None:
            loader = self.plain_train_loader()
            shown = tqdm(loader, desc="measuring pixels", unit="batch", file=sys.stderr, disable=len(loader) < 10)
            statistics = measure_pixels(views.permute(0, 2, 3, 1).numpy() for views, _ in shown)
            keep(key, statistics)
        return statistics

    @property
    def has_measured_pixels(self) -> bool:
        """Whether this run depends on `pixel_statistics`, which are then there already."""
        return "pixel_statistics" in self.__dict__ or self.train_transform.needs_covariance

    def ready_train_transform(self) -> TrainTransform:
        """Returns the training transform; measures the training images' colours if it asks for them."""
        if self.train_transform.needs_covariance:
            self.train_transform.set_covariance(self.pixel_statistics.covariance)
        return self.train_transform

    @property
    def num_train_batches(self) -> int:
        """Training batches per epoch."""
        return len(self._train_batches(0, 0))

    def serve_cached(self, cached: tuple[Dataset[Batch], Dataset[Batch]] | None) -> None:
        """Makes training and validation read these in place of images, by the same keys; None: images again."""
        self._cached = cached

    def view_loader(self, view: int) -> DataLoader[Batch]:
        """Returns a loader of all training images in their order, in one of their fixed views."""
        images = self.train_images()
        keys = [(view, position) for position in range(len(images))]
        batches = [keys[start : start + EVAL_BATCH_SIZE] for start in range(0, len(keys), EVAL_BATCH_SIZE)]
        return batch_loader(images, batches, self.num_workers)

    def plain_train_loader(self) -> DataLoader[Batch]:
        """Returns a loader of all training images as validation sees them."""
        return self._eval_loader(self.splits.train)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Returns the training loader, at the batch where a resumed run stands."""
        batches = self._train_batches(*next_batch(self.trainer, self.num_train_batches))
        if self._cached is not None:
            return batch_loader(self._cached[0], batches, 0)
        images = self.train_images()
        if images.fallback_reason and not self._has_told_why and self.trainer and self.trainer.is_global_zero:
            print(f"augmenting image by image: {images.fallback_reason}", file=sys.stderr)
            self._has_told_why = True
        return batch_loader(images, batches, self.num_workers)

    def train_images(self) -> TrainImages:
        """Returns the training images as training sees them: augmented, by keys (epoch, position in the split)."""
        transform = self.ready_train_transform()
        return TrainImages(self.image_set, self.splits.train, transform, self.seed, self.reduced_decode)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Returns the validation loader."""
        if self._cached is not None:
            return self._eval_loader(self.splits.val, self._cached[1])
        return self._eval_loader(self._own_share(self.splits.val))

    def test_dataloader(self) -> DataLoader[Batch]:
        """Returns the test loader."""
        return self._eval_loader(self._own_share(self.splits.test))

    def _train_batches(self, first_epoch: int, first_batch: int) -> TrainBatches:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self.batch_size % world_size:
            raise UsageError("batch_size", self.batch_size, f"give a multiple of the {world_size} devices")
        labels = self.image_set.labels[self.splits.train]
        balanced = labels if self.sampler == "balanced" else None
        return TrainBatches(
            len(labels), self.batch_size, self.seed, first_epoch, first_batch, rank, world_size, balanced, self.views
        )

    def _own_share(self, indices: np.ndarray) -> np.ndarray:
        """Returns what this of several devices evaluates."""
        if self.trainer is None or self.trainer.world_size == 1:
            return indices
        return indices[self.trainer.global_rank :: self.trainer.world_size]

    def _eval_loader(self, indices: np.ndarray, cached: Dataset[Batch] | None = None) -> DataLoader[Batch]:
        images = cached or EvalImages(self.image_set, indices, self.image_size, self.interpolation)
        positions = np.arange(len(indices))
        batches = [positions[start : start + EVAL_BATCH_SIZE] for start in range(0, len(indices), EVAL_BATCH_SIZE)]
        # Images in memory are cut faster than a worker process hands them over.
        in_memory = cached is not None or isinstance(self.image_set.images, ArrayImages)
        return batch_loader(images, batches, 0 if in_memory else self.num_workers)
