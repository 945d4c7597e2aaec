"""`ImageDataModule`: splits, worker processes and the order of images, all of it a pure function of seeds."""

import inspect
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
from torch.utils.data import DataLoader, Dataset

from lit_cnn.core.errors import at_least
from lit_cnn.core.resize import Interpolation
from lit_cnn.data.batches import Batch, EvalImages, TrainImages, batch_loader
from lit_cnn.data.folds import fold_in
from lit_cnn.data.image_sizes import resized_for
from lit_cnn.data.inspection import without_bad_images
from lit_cnn.data.labels import with_looked_at_names
from lit_cnn.data.normalization import Normalization
from lit_cnn.data.option_checks import check_for_decoded, check_options
from lit_cnn.data.pixel_statistics import PixelStatistics, statistics_of
from lit_cnn.data.pixel_values import pixel_options
from lit_cnn.data.prepared import Prepared, prepared_cache
from lit_cnn.data.remote.cache import ByteCache
from lit_cnn.data.sampling import Sampler, TrainBatches, check_shared_out, eval_batches, next_batch, share_of
from lit_cnn.data.sources import (
    MAX_PIXELS,
    NAMES_AS_TEXT,
    ArrayImages,
    ImageSet,
    check_image_set,
    check_source,
    load_image_set,
    place_of,
)
from lit_cnn.data.splits import Splits, SplitScheme, draw_splits, manifest, manifest_digest
from lit_cnn.data.streaming import Stream, stream_of
from lit_cnn.data.transforms import CROP_RATIO, CROP_SCALE, RANDOM_CROP_PCT, TrainCrop, TrainTransform

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
        root: A folder, a file or an address, `s3://bucket/photos`; digits take none, fashion_mnist can do without.
        image_size: Pixels of the square that the network takes; by default what the weights expect, else 32.
        image_sizes: What training goes through in equal shares of its epochs, `[64, 96, 128]`; by default S alone.
        in_channels: 1 (gray) or 3 (RGB); by default what the source has, 3 for a folder.
        batch_size: Training images per step, over all devices.
        num_workers: Worker processes that decode and augment; the result does not depend on it.
        val_fraction: Share of the images that are not test for validation, of each class; the source may have a val.
        test_fraction: Share of all images for the test, of each class; the source may have one.
        split_seed: Seed of the split, whatever the training seed; or the word `seed`: each of `--seeds` has its own
            val, and their standard deviation includes which images one has. What a source prescribes stays.
        split_scheme: 2 by exact quotas, see `lit_cnn.data.splits.draw_splits`; 1 to repeat a split of 0.2 and before.
        limit_train: Train on that many images in all, stratified; the first 50 are among the first 500.
        num_folds: Cut all that is not test into so many folds, of which one is val; see `lit_cnn.data.folds`.
        fold: Which one is val, from 0.
        fold_seed: Seed of the folds, by default that of the split; test does not depend on it.
        sampler: `shuffled`: an epoch is every training image once; `balanced`: as many, but equally many of each class;
            `streamed`: once, tar shard after tar shard, shuffled among those of 4 GB.
        train_crop: How a training image becomes a square: `center` (as in validation), `random` (shorter side to
            256 / 224 of the square, then a random square) or `random_resized` (see `crop_scale`).
        crop_scale: Least and largest share of the area that `random_resized` cuts out, by default 0.35 and 1.
        crop_ratio: Least and largest width / height of what it cuts out; by default 3 / 4 and 4 / 3.
        crop_pct: Share of the shorter side that validation, test, crops and `predict` see, in (0, 1]; 1 is the whole
            central square. By default 224 / 256 with `train_crop=random`; else that of the weights, else 1.
        augment: albumentations transforms by class_path, applied to the training square in this order.
        views: Cycle through that many fixed views of each training image: epoch e sees view e modulo this number.
            By default each epoch draws anew. Features of a frozen backbone can be cached for fixed views only.
        interpolation: `area`, `bilinear` or `bicubic`; by default that of the weights, else `area`.
        normalize: By whose mean and standard deviation: `train`, the training images' (measured once), or `imagenet`;
            by default those that the weights expect, else `imagenet` for files and `train` for images in memory.
        mean: Mean per channel of pixels in [0, 1]; wins over `normalize`.
        std: Standard deviation per channel, likewise.
        class_names: The order of the classes, perhaps with more than the data's; by default the source's, or sorted.
            Of a source with numbers only, the names of 0, 1, 2, …; of a folder, folders that are no splits.
        weights_expect: What the weights that training starts from expect; the command line fills it in; options win.
        check: What is looked at before the first step: `quick` (headers, copies by their bytes, classes), `full` (every
            image decoded, near copies too) or `off`. See `lit_cnn.data.audit.check_data`.
        on_bad_image: `raise` ends the run at a file that cannot be decoded. `skip` decodes every file once and leaves
            such files out, before a test is drawn; the run keeps a list. A bad one in a test of the source ends it.
        max_pixels: Images of more pixels are bad; by default Pillow's limit, a quarter of a gigabyte as RGB.
        prepared: `auto` shrinks photographs once and keeps them on this disk, so that later epochs and runs need not
            decode them: as validation sees them; for `random_resized` so large that no part is enlarged. A number is
            the gigabytes of all; by default 50, at most half of what is free. `off` and `sampler=streamed` keep none.
        reduced_decode: Decode a JPEG in colour at a half, a quarter or an eighth of its size for training, where a view
            is then still not enlarged; its pixels are averages. Such training images are not kept as `prepared`.
        outside_root: Whether a manifest or Hugging Face's folder may refer to files outside of its own folder.
        columns: A manifest's columns by what they are for: `image`, `label`, `split`, `group`; else found by name.
        seed: The training seed, for order and augmentation.
        pixel_range: The values that become black and white in files of more than 8 bits, `[0, 4095]` for 12 bits in
            16; floating-point and 32-bit pixels need it. By default 16 bits are taken to be used in full.
        background: What lies behind transparent pixels: a colour such as `white`, or three numbers from 0 to 255; by
            default transparency is dropped, whatever colour was under it.
        cache_gb: Gigabytes that this disk keeps of images at an address; by default 50, at most half of what is free.

    Attributes:
        options: The arguments, as they were given.
        merges_last_batch: Whether the last, smaller batch of an epoch joins the one before it.

    Raises:
        UsageError: If an option cannot be used, or the images are not there.
    """

    def __init__(
        self,
        dataset: str = "digits",
        root: str | Path | None = None,
        image_size: int | None = None,
        image_sizes: list[int] | None = None,
        in_channels: Literal[1, 3] | None = None,
        batch_size: int = 128,
        num_workers: int = 2,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int | Literal["seed"] = 0,
        split_scheme: SplitScheme = 2,
        limit_train: int | None = None,
        num_folds: int | None = None,
        fold: int | None = None,
        fold_seed: int | None = None,
        sampler: Sampler = "shuffled",
        train_crop: TrainCrop = "center",
        # Of Any, jsonargparse would build the transforms inside a OneOf itself.
        augment: list[dict] | None = None,  # type: ignore[type-arg]
        crop_scale: tuple[float, float] | None = None,
        crop_ratio: tuple[float, float] | None = None,
        crop_pct: float | None = None,
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
        prepared: Prepared = "auto",
        reduced_decode: bool = False,
        outside_root: bool = False,
        seed: int = 0,
        pixel_range: list[float] | None = None,
        background: list[int] | str | None = None,
        cache_gb: float | None = None,
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.options: dict[str, Any] = options
        check_options(options)
        check_source(dataset)
        self.dataset, self.root = dataset, place_of(root) if root is not None else None
        self.batch_size, self.num_workers, self.sampler, self.views = batch_size, num_workers, sampler, views
        self.expect_images(weights_expect)
        self.check: Check = check
        self.on_bad_image, self.reduced_decode, self.seed = on_bad_image, reduced_decode, seed
        self.skipped: dict[str, str] = {}  # path -> reason
        self.pixels = pixel_options(pixel_range, background)
        source = dataset, self.root, in_channels, class_names, columns
        self._load = partial(load_image_set, *source, max_pixels, False, outside_root, self.pixels, cache_gb)
        drawn_by = seed if split_seed == "seed" else split_seed
        self._split = (val_fraction, test_fraction, drawn_by, limit_train, split_scheme, fold_in(options, drawn_by))
        self._cached: tuple[Dataset[Batch], Dataset[Batch]] | None = None
        self.merges_last_batch = self._has_told_how = False  # the search for a batch size asks for many loaders

    def is_default(self, option: str) -> bool:
        """Returns whether an argument has its default value."""
        return bool(self.options[option] == inspect.signature(type(self)).parameters[option].default)

    def expect_images(self, expected: Mapping[str, Any] | None) -> None:
        """Serves the images that weights expect, in all that was not given otherwise; see `weights_expect`.

        Args:
            expected: `image_size`, `mean`, `std`, `interpolation`, `crop_pct`; None is what this data module has by
                itself.
        """
        self.weights_expect, given = dict(expected or {}), self.options
        expects = self.weights_expect.get
        self.image_size: int = expects("image_size", 32) if given["image_size"] is None else given["image_size"]
        at_least(1, image_size=self.image_size)
        self.interpolation: Interpolation = given["interpolation"] or expects("interpolation", "area")
        of_training = RANDOM_CROP_PCT if given["train_crop"] == "random" else expects("crop_pct", 1.0)
        self.crop_pct: float = given["crop_pct"] or of_training
        self.train_transform = TrainTransform(
            self.image_size,
            given["train_crop"],
            given["augment"] or (),
            self.interpolation,
            self.crop_pct,
            given["crop_scale"] or CROP_SCALE,
            given["crop_ratio"] or CROP_RATIO,
        )
        own = given["normalize"], given["mean"], given["std"]
        self._normalization = Normalization(*own, expects("mean"), expects("std"))
        if "image_set" in self.__dict__:  # else it is done when they are read
            self.train_transform.check(self.in_channels)
        for name in ("pixel_statistics", "_mean_and_std"):
            self.__dict__.pop(name, None)

    @cached_property
    def image_set(self) -> ImageSet:
        """The images, read at first use; without the bad ones, if these are to be skipped."""
        found = self.load()
        if self.on_bad_image == "skip":
            found, self.skipped = without_bad_images(found)
        check_image_set(found)
        check_for_decoded(self.options, found.images)
        self.train_transform.check(found.in_channels)
        return found

    def load(self) -> ImageSet:
        """Reads the images, whatever may be wrong with them."""
        found = self._load()
        if self.dataset not in NAMES_AS_TEXT or self.options["split_scheme"] == 1:  # versions before took any name
            return found
        return with_looked_at_names(found, are_given=self.options["class_names"] is not None)

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
    def pixel_range(self) -> list[float] | None:
        """The values that become black and white in files of more than 8 bits, if they were given."""
        return None if self.pixels.pixel_range is None else list(self.pixels.pixel_range)

    @property
    def background(self) -> list[int] | None:
        """What lies behind transparent pixels, RGB from 0 to 255, if it was given."""
        return None if self.pixels.background is None else list(self.pixels.background)

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
        train, size, view = self.splits.train, self.image_size, (self.crop_pct, self.pixels)
        return statistics_of(self.image_set, train, size, self.interpolation, *view, self.plain_train_loader)

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
        return len(self.train_batches(*self._process))

    def serve_cached(self, cached: tuple[Dataset[Batch], Dataset[Batch]] | None) -> None:
        """Makes training and validation read these in place of images, by the same keys; None: images again."""
        self._cached = cached

    def view_loader(self, view: int, indices: np.ndarray | None = None) -> DataLoader[Batch]:
        """Returns a loader of images, by default those of training, in their order and in one of their fixed views."""
        images = self.train_images(indices)
        return batch_loader(images, eval_batches([(view, place) for place in range(len(images))]), self.num_workers)

    def plain_train_loader(self) -> DataLoader[Batch]:
        """Returns a loader of all training images as validation sees them."""
        return self.eval_loader(self.splits.train)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Returns the training loader, at the batch where a resumed run stands."""
        batches = self.train_batches(*self._process, *next_batch(self.trainer, self.num_train_batches))
        if self._cached is not None:
            return batch_loader(self._cached[0], batches, 0)
        images = self.train_images()
        if not self._has_told_how and self.trainer and self.trainer.is_global_zero:
            images.tell_how()
            self._has_told_how = True
        return batch_loader(images, batches, self.num_workers)

    @cached_property
    def prepared_cache(self) -> ByteCache | None:
        """Keeps photographs as they are before anything is drawn; None if none are kept."""
        return prepared_cache(self.image_set.images, self.options)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Resizes training images as `image_sizes` says."""
        return resized_for(batch, self.trainer, self.options["image_sizes"])

    def train_images(self, indices: np.ndarray | None = None) -> TrainImages:
        """Returns images, by default those of training, as training sees them: augmented, by (epoch, position)."""
        of, transform = self.splits.train if indices is None else indices, self.ready_train_transform()
        return TrainImages(self.image_set, of, transform, self.seed, self.reduced_decode, self.prepared_cache)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Returns the validation loader."""
        cached = self._cached[1] if self._cached is not None else None
        return self.eval_loader(self.splits.val if cached else share_of(self.splits.val, *self._process), cached)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Returns the test loader."""
        return self.eval_loader(share_of(self.splits.test, *self._process))

    def train_batches(self, rank: int, world_size: int, first_epoch: int = 0, first_batch: int = 0) -> TrainBatches:
        """Returns which images one of several processes trains on, batch by batch; see `TrainBatches`."""
        check_shared_out(self.batch_size, world_size)
        labels = self.image_set.labels[self.splits.train]
        more = labels if self.sampler == "balanced" else None, self.views, self.merges_last_batch, self._stream
        where = first_epoch, first_batch, rank, world_size
        return TrainBatches(len(labels), self.batch_size, self.seed, *where, *more)

    @cached_property
    def _stream(self) -> Stream | None:
        return stream_of(self.image_set, self.splits, self.sampler == "streamed")

    @property  # its number, and how many there are
    def _process(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def eval_loader(self, indices: np.ndarray, cached: Dataset[Batch] | None = None) -> DataLoader[Batch]:
        """Returns a loader of images as validation sees them, or of what stands in for them."""
        keeps = indices is not self.splits.train or self.train_transform.crop == "center"  # else twice
        how = self.image_size, self.interpolation, self.crop_pct, self.prepared_cache if keeps else None
        images = cached or EvalImages(self.image_set, indices, *how)
        batches = eval_batches(np.arange(len(indices)))
        # Images in memory are cut faster than a worker process hands them over.
        in_memory = cached is not None or isinstance(self.image_set.images, ArrayImages)
        return batch_loader(images, batches, 0 if in_memory else self.num_workers)
