"""Data sets whose items are whole batches, decoded and augmented in the worker process that was asked for them."""

import atexit
import functools
import gc
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar, cast

import cv2
import numpy as np
import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset, get_worker_info

from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import size_in_words
from lit_cnn.core.resize import Interpolation
from lit_cnn.data.batch_transforms import BatchTransform, slow_step
from lit_cnn.data.prepared import PreparedImages
from lit_cnn.data.remote.cache import ByteCache
from lit_cnn.data.sampling import Key
from lit_cnn.data.sources import ArrayImages, EncodedImages, ImageSet
from lit_cnn.data.transforms import TrainTransform

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images `(N, C, S, S)` uint8 and labels `(N,)` int64."""

GetItems = TypeVar("GetItems", bound=Callable[..., Any])

# Not on macOS: there a TERM to all processes of a run ends the workers first.
_TELLS_SENDERS = hasattr(signal, "sigtimedwait")
_WORKERS: "weakref.WeakSet[BaseProcess]" = weakref.WeakSet()
_SMALL = 2**19  # bytes; about where the pipe and shared memory are equally fast


class Mistake(ExceptionWrapper):
    """A mistake of the user on its way out of a loader's worker process.

    torch would make a text of it and its traceback, in which the command line could not spell the options any more.

    Args:
        error: What the loader raises where it is read.
    """

    def __init__(self, error: UsageError) -> None:
        self.error = error

    def reraise(self) -> None:
        """Raises it; a loader calls this in place of giving a batch."""
        raise self.error


def keeps_mistakes(getitems: GetItems) -> GetItems:
    """Makes a data set's `__getitems__` give a `UsageError` as it is to whoever reads the loader."""

    @functools.wraps(getitems)
    def kept(*args: Any) -> Any:
        try:
            return getitems(*args)
        except UsageError as error:
            if get_worker_info() is None:
                raise
            return Mistake(error)

    return cast(GetItems, kept)


class TrainImages(Dataset[Batch]):
    """Augmented training images; `__getitems__` makes a whole batch at once, in a worker process.

    Args:
        image_set: All images.
        indices: `(n,)` the training images among them.
        transform: What happens to an image.
        seed: The training seed.
        reduced_decode: Whether a JPEG is decoded at a half, a quarter or an eighth of its size where its view is no
            larger; of image files only.
        cache: Keeps photographs as they are before anything is drawn; not those of which each view is decoded at a size
            of its own.

    Attributes:
        fallback_reason: Why images in memory are augmented one by one and not as a batch; None if they are a batch.
        prepared: What it keeps; None if nothing.
    """

    def __init__(
        self,
        image_set: ImageSet,
        indices: np.ndarray,
        transform: TrainTransform,
        seed: int,
        reduced_decode: bool = False,
        cache: ByteCache | None = None,
    ) -> None:
        self.images = image_set.images
        self.labels = image_set.labels
        self.indices = indices
        self.transform = transform
        self.seed = seed
        self.reduced_decode = reduced_decode
        self.prepared: Sequence[np.ndarray] | None = None
        if cache is not None and not reduced_decode:
            self.prepared = PreparedImages(image_set, transform.prepare, transform.prepared_as, cache)
        self.fallback_reason = _fallback_reason(self.images, transform)
        self._batch_transform = BatchTransform(transform)

    def __len__(self) -> int:
        return len(self.indices)

    @keeps_mistakes
    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Returns images `(N, C, S, S)` uint8 and labels `(N,)` int64 for (epoch, position) pairs."""
        turns, places = np.divmod([position for _, position in keys], len(self.indices))
        chosen = self.indices[places]
        # A balanced epoch asks for an image again as position + n: augmented by a key that belongs to no other image.
        numbers = (chosen + turns * len(self.labels)).tolist()
        draws = [(self.seed, epoch, number) for (epoch, _), number in zip(keys, numbers, strict=True)]
        views: Sequence[np.ndarray] | np.ndarray
        if isinstance(self.images, ArrayImages) and self.fallback_reason is None:
            views = self._batch_transform(self.images.array[chosen], draws)
        else:
            views = [self._view(int(index), draw) for index, draw in zip(chosen, draws, strict=True)]
        return stack_images(views), torch.from_numpy(self.labels[chosen])

    def tell_how(self) -> None:
        """Prints how these images are read, where that is slow or takes room on the disk."""
        if self.fallback_reason:
            print(f"augmenting image by image: {self.fallback_reason}", file=sys.stderr)
        elif isinstance(self.prepared, PreparedImages) and self.prepared.keeps(int(self.indices[0])):
            cache = self.prepared.cache
            room = f"{cache.folder}, up to {size_in_words(cache.max_bytes)}"
            print(f"photographs are shrunk once and kept in {room}", file=sys.stderr)

    def _view(self, index: int, draw: tuple[int, ...]) -> np.ndarray:
        if self.prepared is not None:
            return self.transform.view(self.prepared[index], *draw)
        if not self.reduced_decode:
            return self.transform(self.images[index], *draw)
        assert isinstance(self.images, EncodedImages)
        image = self.images.decode(index, lambda height, width: self.transform.reduction(height, width, *draw))
        return self.transform(image, *draw)


def _fallback_reason(images: Sequence[np.ndarray], transform: TrainTransform) -> str | None:
    if isinstance(images, ArrayImages):
        step = slow_step(transform)
        return step and f"{step} cannot be done to a whole batch"
    return None if isinstance(images, EncodedImages) else "torchvision's sets give one image at a time"


class EvalImages(Dataset[Batch]):
    """Images as validation sees them.

    Args:
        image_set: All images.
        indices: `(n,)` the images to give, in this order.
        size: S, pixels of the square.
        interpolation: How to resize.
        crop_pct: Share of the shorter side that is shown, in (0, 1].
        cache: Keeps the views of photographs.
    """

    def __init__(
        self,
        image_set: ImageSet,
        indices: np.ndarray,
        size: int,
        interpolation: Interpolation,
        crop_pct: float,
        cache: ByteCache | None = None,
    ) -> None:
        # Its steps before anything is drawn are those of validation.
        view = TrainTransform(size, "center", interpolation=interpolation, crop_pct=crop_pct)
        self.images = image_set.images
        self.labels = image_set.labels
        self.indices = indices
        self.resize = view.resize
        self.prepared: Sequence[np.ndarray] | None = None
        if cache is not None:
            self.prepared = PreparedImages(image_set, view.prepare, view.prepared_as, cache)

    def __len__(self) -> int:
        return len(self.indices)

    @keeps_mistakes
    def __getitems__(self, positions: Sequence[int]) -> Batch:
        """Returns images `(N, C, S, S)` uint8 and labels `(N,)` int64."""
        chosen = self.indices[positions]
        if self.prepared is not None:
            views = [self.prepared[index] for index in chosen]
        else:
            views = [self.resize(self.images[index]) for index in chosen]
        return stack_images(views), torch.from_numpy(self.labels[chosen])


def stack_images(views: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
    """Stacks `(S, S, C)` uint8 arrays to one contiguous `(N, C, S, S)` uint8 tensor."""
    stacked = views if isinstance(views, np.ndarray) else np.stack(views)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def pack_batch(batch: Any) -> Any:
    """The `collate_fn` of batches that are whole already: packs one for its way out of a worker process.

    torch puts each tensor into a shared memory of its own, which takes about half a millisecond however small it is:
    longer than to augment 128 small images. A packed batch sends small tensors through the pipe instead.

    Args:
        batch: Images `(N, C, S, S)` uint8 and labels `(N,)` int64.

    Returns:
        The same; in a worker process, what becomes the same when it is unpickled.
    """
    return batch if get_worker_info() is None or isinstance(batch, Mistake) else _PackedBatch(*batch)


class Batches(DataLoader[Batch]):
    """A loader whose worker processes end when it wants them to, and not by signals to all processes of a run.

    A terminal or a batch system sends those: training then ends as it should, and its workers with it. A worker that
    ended by itself would be an error of training's. Its `worker_init_fn` is `start_worker`.
    """

    def __iter__(self) -> Any:
        """Returns the batches of an epoch; starts the workers where they do not run yet."""
        # Inherited by every thread that a worker has, also before `start_worker` is called, which awaits it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM] if _TELLS_SENDERS else [])
        try:
            batches = super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _WORKERS.update(getattr(batches, "_workers", ()))
        return batches


def batch_loader(images: Dataset[Batch], batches: Any, num_workers: int) -> DataLoader[Batch]:
    """Returns a loader of whole batches.

    Args:
        images: Its `__getitems__` makes a batch.
        batches: Batch sampler, or a list of batches: for each what `__getitems__` takes.
        num_workers: Worker processes; they stay from epoch to epoch.
    """
    return Batches(
        images,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=pack_batch,
        worker_init_fn=start_worker,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        # The loader draws a base seed from torch's own stream at every pass; nothing here uses it.
        generator=torch.Generator(),
    )


@atexit.register
def _end_workers() -> None:
    """Ends the workers that are left: asks them, and kills those that have not heard of it after a second.

    A worker of a loader that is still held works on; torch would say with a traceback that it was killed. One that is
    stuck in native code never comes to hear of anything, and Python would wait for it without end.
    """
    left = [worker for worker in _WORKERS if worker.is_alive()]
    for worker in left:
        worker.terminate()
    last_moment = time.monotonic() + 1
    for worker in left:
        worker.join(max(0.0, last_moment - time.monotonic()))
        if worker.is_alive():
            worker.kill()


def start_worker(worker_id: int) -> None:
    """Prepares a worker process: one thread of OpenCV, little memory, and an end when its reader wants it."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)  # its parent's: a signal here is none there
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # Worker processes share the cores with training; OpenCV's own pool would only contend with it.
    cv2.setNumThreads(0)
    # A collection would write to all that the worker has from its parent, and so copy the pages that they share.
    gc.freeze()


def _end_with(parent: int) -> None:
    """Ends the process when its parent says so by SIGTERM, or is gone."""
    # torch's own watch ends a worker that waits for work. One that still writes into a pipe which nobody reads, since a
    # kill -9 has taken the reader, would wait for ever: its brothers hold the other end open.
    while os.getppid() == parent:
        if not _TELLS_SENDERS:
            time.sleep(1)
        elif (received := signal.sigtimedwait([signal.SIGTERM], 1)) is not None and received.si_pid == parent:
            os._exit(0)
    os._exit(1)


class _PackedBatch:
    """A batch between two processes: pickled, it is arrays; unpickled, it is the batch."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images = images
        self.labels = labels

    def __reduce__(self) -> tuple[Any, ...]:
        images = self.images.numpy() if self.images.nbytes <= _SMALL else self.images
        return _unpack, (images, self.images.stride(), self.labels.numpy())


def _unpack(images: np.ndarray | torch.Tensor, strides: tuple[int, ...], labels: np.ndarray) -> Batch:
    # The strides of a single channel are not in its bytes, and by them torch chooses the kernel of a convolution: other
    # roundings would make the weights depend on the number of workers.
    return torch.as_tensor(images).as_strided(images.shape, strides), torch.from_numpy(labels)
