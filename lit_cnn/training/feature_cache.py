"""Training on the features of a frozen backbone: each is computed once, kept on disk and read from there ever after.

What is frozen gives the same features of the same pixels in every epoch and in every run that starts from the same
weights. So `head_only`, and the frozen part of `last_stages`, need them once for each fixed view of a training image
(one without augmentation, K with `views=K`) and once for each image of val. Test images are looked at once and
not cached. The batches, their order and what is logged are those of a run on images, and so is the checkpoint.

It is on by default wherever it applies, with bf16 on disk. Where training computes in bfloat16 that changes nothing;
else, and in val, each feature is rounded to its first three digits. fp32 on disk changes nothing but the last bits, by
which a network's results depend on how images are put into batches.

Of folds, the features of all images that are not test are computed together, as training and as validation see them,
and all folds read these.
"""

import contextlib
import hashlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lit_cnn.core.bars import Bar
from lit_cnn.core.errors import UsageError, as_printed
from lit_cnn.core.files import size_in_words
from lit_cnn.core.randomness import SCHEME_VERSION
from lit_cnn.core.words import counted
from lit_cnn.data.batches import Batch
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.pixel_values import AS_IS
from lit_cnn.data.sampling import Key
from lit_cnn.training.checkpoints import digest_of_weights
from lit_cnn.training.feature_store import CacheKey, Features, NoRoomError, get_or_compute, store_folder
from lit_cnn.training.transfer import SplitNet, check_split, split_net

FeatureCacheMode = Literal["bf16", "fp16", "fp32", "off"]

_SCHEMA = 1  # raised when the same key would mean other numbers
_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
# Whose versions decide what pixels and features are, to the last bit.
_PACKAGES = ("torch", "torchvision", "timm", "opencv-python-headless", "pillow", "simplejpeg", "albumentations")


class FeatureCache(pl.Callback):
    """Makes a model train and validate on cached features, where that can be, and says whether it does.

    The options are the model's: `feature_cache`, `feature_cache_gb`, `head_solver`.

    Attributes:
        used: How features are kept in this run, or `off`.
    """

    def __init__(self) -> None:
        self.used: FeatureCacheMode = "off"
        self._is_planned = False
        self._split: SplitNet | None = None
        self._shape: tuple[int, ...] = ()
        self._digest = ""
        self._features: list[Features] = []
        self._entries: list[tuple[bool, int]] = []  # whether each was found, and its bytes

    def plan(self, trainer: pl.Trainer, model: Any, data: ImageDataModule) -> None:
        """Finds out, before anything is written, whether features can be cached; if not, says why.

        Raises:
            UsageError: If they cannot, and the head is to be solved for on them.
        """
        self._is_planned = True
        self.used, options = "off", model.hparams
        if not model.freezer.freezes or options["feature_cache"] == "off":
            reason: str | None = "`feature_cache=off`" if model.freezer.freezes else "nothing is frozen"
        else:
            reason = getattr(model, "why_no_features", None) or why_off(trainer, options, data)
            reason = reason or self._try_split(model)
            if reason is None:
                train, val = _served(data)
                rows = len(train) * (data.views or 1) + len(val)
                num_bytes = CacheKey({}, (rows, *self._shape), options["feature_cache"]).num_bytes
                limit = options["feature_cache_gb"]
                if num_bytes > limit * 1e9:
                    reason = f"{size_in_words(num_bytes)} of features pass `feature_cache_gb={limit:g}`"
            if reason is not None and trainer.is_global_zero:
                print("feature cache off:", as_printed(reason), file=sys.stderr)
        if reason is None:
            self.used = options["feature_cache"]
        if model.solves_head:
            reason = reason or self._not_convex(model, data)
            if reason is not None:
                needs = f"needs a linear head on cached features of unaugmented images: {reason}"
                raise UsageError("head_solver", "lbfgs", needs, "or give sgd")

    def _not_convex(self, model: Any, data: ImageDataModule) -> str | None:
        """Returns why the loss is no convex function of the head alone, the same in every epoch; None if it is."""
        if model.hparams["transfer"] != "head_only":
            return f"`transfer` is {model.hparams['transfer']}"
        if not isinstance(model.net.get_classifier(), torch.nn.Linear):
            return f"the head of {model.hparams['arch']} is not one fully connected layer"
        if data.train_transform.steps:
            return "`augment` and `train_crop` change the images"
        if data.sampler == "balanced":
            return f"`sampler={data.sampler}` changes the images from epoch to epoch"
        assert self._split is not None
        features = torch.ones(1, *self._shape, device=model.device)
        with torch.no_grad():
            if not torch.equal(self._split.late[True](features), self._split.late[False](features)):
                return "there is a dropout before the head"
        return None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reads or computes the features, and hands them to data module and model."""
        model: Any = pl_module
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, ImageDataModule):
            return
        if not self._is_planned:
            self.plan(trainer, model, data)
        if self.used == "off":
            return
        if model.device.type != "cpu":
            self._try_split(model)  # the parts have to hold what was moved to the device
        try:
            self._serve(trainer, model, data)
        except NoRoomError as error:
            self.teardown(trainer, model, "fit")
            if model.solves_head:
                raise UsageError("head_solver", "lbfgs", f"needs the feature cache: {error}") from error
            print("feature cache off:", as_printed(str(error)), file=sys.stderr)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Puts images back in their place."""
        model: Any = pl_module
        model.split = None
        self._is_planned = False  # another fit may be on other images
        data = getattr(trainer, "datamodule", None)
        if stage == "fit" and isinstance(data, ImageDataModule):
            data.serve_cached(None)
        for features in self._features:
            features.close()
        self._features.clear()
        self._entries.clear()

    def _try_split(self, model: Any) -> str | None:
        """Splits the network; returns why it cannot be, or None."""
        hparams = model.hparams
        shape = (2, hparams["in_channels"], hparams["image_size"], hparams["image_size"])
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        try:
            self._split = split_net(model.train().net)
            model.train()
            self._shape = check_split(model.net, self._split, model.normalize(pixels.to(model.device)))
        except ValueError as error:
            return f"{hparams['arch']} cannot be cut where its frozen part ends: {error}"
        finally:
            model.train()
        return None

    def _serve(self, trainer: pl.Trainer, model: Any, data: ImageDataModule) -> None:
        assert self._split is not None
        # A checkpoint may have brought other weights since the plan.
        self._digest = _digest_of_part(self._split.frozen)
        train = trainer.precision_plugin.forward_context
        exact = partial(torch.autocast, model.device.type, enabled=False)
        views, num_views = [], data.views or 1
        of_train, of_val = _served(data)
        is_shared = of_train is of_val
        for view in range(num_views):
            of = "images of all folds" if is_shared else "training images"
            of += f", view {view + 1} of {num_views}" if num_views > 1 else ""
            cache_key = self._key(model, data, of_train, str(trainer.precision), _view_key(data, view, of_train))
            loader = partial(data.view_loader, view, of_train)
            views.append(self._get_or_compute(trainer, model, cache_key, loader, train, of))
        cache_key = self._key(model, data, of_val, "32-true", [])
        loader = partial(data.eval_loader, of_val)
        of = "images of all folds as validation sees them" if is_shared else "val images"
        val = self._get_or_compute(trainer, model, cache_key, loader, exact, of)
        of_views = f" in {num_views} views" if num_views > 1 else ""
        of = f"{counted(len(data.splits.train), 'training image')}{of_views}, {len(data.splits.val):,} of val"
        how = " and ".join(sorted({"found" if found else "computed" for found, _ in self._entries}))
        size = size_in_words(sum(num_bytes for _, num_bytes in self._entries))
        if not is_shared or "computed" in how:  # else each fold would say the same
            print(f"features of {of}: {how}, {size} as {cache_key.stored_as} in {store_folder()}", file=sys.stderr)
        train_labels, val_labels = (data.image_set.labels[part] for part in (data.splits.train, data.splits.val))
        rows = [np.searchsorted(of_val, part) if is_shared else None for part in (data.splits.train, data.splits.val)]
        data.serve_cached((TrainFeatures(views, train_labels, rows[0]), EvalFeatures(val, val_labels, rows[1])))
        model.split = self._split

    def _get_or_compute(
        self,
        trainer: pl.Trainer,
        model: Any,
        cache_key: CacheKey,
        loader: Callable[[], DataLoader[Batch]],
        context: Callable[[], Any],
        of: str,
    ) -> tuple[torch.Tensor, torch.dtype]:
        """Returns an entry and the type that its features are computed in."""

        def compute() -> Iterator[torch.Tensor]:
            """Yields the features of each batch, on the CPU."""
            bar, done = Bar(cache_key.shape[0]), 0
            if not bar.is_shown:
                print(f"computing features of {cache_key.shape[0]:,} {of} …", file=sys.stderr, flush=True)
            with contextlib.closing(bar), torch.inference_mode():
                for images, _ in loader():
                    bar.show(f"features of {of}", done)
                    yield self._frozen(model, images, context).cpu()
                    done += len(images)

        def check_stop() -> None:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by a connector
                if hasattr(callback, "stop_if_signalled"):
                    callback.stop_if_signalled()

        max_bytes = int(model.hparams["feature_cache_gb"] * 1e9)
        features, found = get_or_compute(cache_key, compute, max_bytes, check_stop)
        self._features.append(features)
        self._entries.append((found, cache_key.num_bytes))
        with torch.inference_mode():
            size_of_image = (1, *(model.hparams[name] for name in ("in_channels", "image_size", "image_size")))
            dtype = self._frozen(model, torch.zeros(size_of_image, dtype=torch.uint8), context).dtype
        return features.values, dtype

    def _frozen(self, model: Any, images: torch.Tensor, context: Callable[[], Any]) -> torch.Tensor:
        assert self._split is not None
        with context():
            return self._split.frozen(model.normalize(images.to(model.device)))

    def _key(self, model: Any, data: ImageDataModule, indices: np.ndarray, precision: str, view: list[Any]) -> CacheKey:
        image_hashes = hashlib.sha256("\n".join(data.image_set.hashes[index] for index in indices).encode())
        key = {
            "schema": _SCHEMA,
            "frozen": self._digest,
            "images": image_hashes.hexdigest(),
            "in_channels": data.in_channels,
            "image_size": data.image_size,
            "interpolation": data.interpolation,
            # What was cached before there was this option is found as it was.
            **({"crop_pct": data.crop_pct} if data.crop_pct != 1 else {}),
            "mean": model.mean.flatten().tolist(),
            "std": model.std.flatten().tolist(),
            "view": view,
            "precision": precision,
            "device": model.device.type,
            "versions": {name: _version(name) for name in _PACKAGES},
        }
        if data.pixels != AS_IS:
            key["pixels"] = str(data.pixels)
        return CacheKey(key, (len(indices), *self._shape), model.hparams["feature_cache"])


class EvalFeatures(Dataset[Batch]):
    """Features in place of images, by position.

    Args:
        features: `(N, …)` and the type that they are computed in, which a batch has.
        labels: `(n,)` int64.
        rows: `(n,)` int, which features are served, in this order; None for all N.
    """

    def __init__(
        self, features: tuple[torch.Tensor, torch.dtype], labels: np.ndarray, rows: np.ndarray | None = None
    ) -> None:
        self.values, self.dtype = features
        self.labels = torch.from_numpy(labels)
        self.rows = None if rows is None else torch.from_numpy(rows)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, positions: Sequence[int] | np.ndarray) -> Batch:
        """Returns features `(N, …)` and labels `(N,)` int64."""
        places = torch.as_tensor(positions)
        rows = places if self.rows is None else self.rows[places]
        return self.values[rows].to(self.dtype), self.labels[places]


class TrainFeatures(Dataset[Batch]):
    """Features of training images in each of their views, by (epoch, position).

    Args:
        views: Of each view `(N, …)`, and the type that they are computed in.
        labels: `(n,)` int64.
        rows: See `EvalFeatures`.
    """

    def __init__(
        self, views: Sequence[tuple[torch.Tensor, torch.dtype]], labels: np.ndarray, rows: np.ndarray | None = None
    ) -> None:
        self.views = [EvalFeatures(view, labels, rows) for view in views]

    def __len__(self) -> int:
        return len(self.views[0])

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Returns features `(N, …)` and labels `(N,)` int64; all keys are of one epoch."""
        epoch = keys[0][0]
        # An image that comes again in a balanced epoch has the position + N.
        return self.views[epoch % len(self.views)].__getitems__(np.array([place for _, place in keys]) % len(self))


def why_off(trainer: pl.Trainer, options: Any, data: ImageDataModule) -> str | None:
    """Returns why a run that freezes something cannot use cached features; None if it can.

    Args:
        trainer: Of the run.
        options: The model's hyperparameters.
        data: The images.
    """
    if options["transfer"] == "gradual":
        return "what is frozen changes from epoch to epoch in gradual"
    if options["mixup"] or options["cutmix"]:
        return "`mixup` and `cutmix` change the pixels of each batch"
    if data.views is None and data.train_transform.steps:
        return "each epoch augments anew; give `augment=[]`, or `views=K` for K fixed views of each image"
    if data.options["image_sizes"]:
        return "`image_sizes` changes the pixels from epoch to epoch"
    if trainer.world_size > 1:
        return "it serves one device"
    if str(trainer.precision) not in _PRECISIONS:
        return f"`precision={trainer.precision}` is not one of {', '.join(_PRECISIONS)}"
    return None


def _served(data: ImageDataModule) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images of which features are computed for training, and for val: of folds the same, in their order.

    Where the pixels depend on which images are trained on, or a part of them alone is, each fold has its own.
    """
    if not data.splits.folds or data.options["limit_train"] is not None or data.has_measured_pixels:
        return data.splits.train, data.splits.val
    whole = np.sort(np.concatenate(data.splits.folds))
    return whole, whole


def _view_key(data: ImageDataModule, view: int, indices: np.ndarray) -> list[Any]:
    """Returns all that decides which pixels a fixed view of images has, besides the images."""
    transform = data.train_transform
    is_shrunk = transform.crop == "random_resized" and data.prepared_cache is not None
    decoded = ["reduced"] if data.reduced_decode else ["prepared"] if is_shrunk else []
    if not transform.steps:
        return decoded
    return [
        *decoded,
        transform.crop,
        *(f"{name} {data.options[name]}" for name in ("crop_scale", "crop_ratio") if not data.is_default(name)),
        transform.augment,
        [_digest_of_source(step) for step in transform.all_steps if not _is_albumentations(step)],
        [SCHEME_VERSION, data.seed, view],
        # The draws go by an image's place in the set.
        hashlib.sha256(indices.tobytes()).hexdigest(),
    ]


def _is_albumentations(step: Any) -> bool:
    return type(step).__module__.startswith("albumentations.")


def _digest_of_source(step: Any) -> str:
    """Returns the SHA-256 of the file that a transform's class is in: of what is not albumentations', no version is."""
    file = getattr(sys.modules[type(step).__module__], "__file__", None)
    return hashlib.sha256(Path(file).read_bytes() if file else b"").hexdigest()


def _digest_of_part(part: torch.fx.GraphModule) -> str:
    """Returns the SHA-256 of what a part computes: its layers with their settings, their order, weights and buffers."""
    tensors = {**dict(part.named_parameters()), **dict(part.named_buffers())}
    return hashlib.sha256(f"{part}\n{digest_of_weights(tensors)}".encode()).hexdigest()


@cache
def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None
