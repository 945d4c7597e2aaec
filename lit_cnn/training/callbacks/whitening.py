"""Before the first step: a first layer that is computed from the training images."""

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F

from lit_cnn.core.errors import UsageError
from lit_cnn.data.batches import EvalImages
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.models.airbench import AirBench

_MOST_IMAGES = 5000  # as many as the paper looks at
_BATCH = 500


def patch_covariance(batches: Iterable[torch.Tensor], patch: int) -> torch.Tensor:
    """Measures how the pixels of patches vary together; not a bit depends on how the images are batched or ordered.

    Args:
        batches: Images `(N, C, H, W)`, uint8.
        patch: P, height and width of the patches, in pixels.

    Returns:
        `(C * P * P, C * P * P)`, float64, of pixels in [0, 1] in the order (channel, row, column); divided by the
        number of patches.
    """
    count, sums, products = 0, torch.zeros(1), torch.zeros(1)
    for batch in batches:
        patches = F.unfold(batch.double(), patch).transpose(1, 2).flatten(0, 1)
        # Sums of whole numbers, exact in float64 up to 2**53.
        count, sums, products = count + len(patches), sums + patches.sum(0), products + patches.T @ patches
    mean = sums / count
    return (products / count - mean[:, None] * mean) / 255**2


class Whitening(pl.Callback):
    """Computes the first layer of an `AirBench` from 5,000 training images, evenly spread, as validation sees them.

    Only once: a run that goes on, or that starts from weights of another, has it in them. It is kept in every
    checkpoint. Other networks are left alone.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Computes it, after a checkpoint was restored and before the first step.

        Raises:
            UsageError: If there is no `ImageDataModule` to compute it from.
        """
        model: Any = pl_module
        net = model.net
        if not isinstance(net, AirBench) or net.is_whitened:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit
        if not isinstance(data, ImageDataModule):
            raise UsageError("arch", "airbench", "its first layer is computed from the images of an ImageDataModule")
        train = np.sort(data.splits.train)
        chosen = train[np.linspace(0, len(train) - 1, min(len(train), _MOST_IMAGES)).astype(np.int64)]
        images = EvalImages(data.image_set, chosen, data.image_size, data.interpolation, data.crop_pct)
        places = np.array_split(np.arange(len(chosen)), -(-len(chosen) // _BATCH))
        patch = net.whitening.kernel_size[0]
        covariance = patch_covariance((images.__getitems__(part.tolist())[0] for part in places), patch)
        # Of pixels as the network gets them: divided by their standard deviation.
        stds = model.std.double().flatten().cpu().repeat_interleave(patch**2)
        net.whiten(covariance / (stds[:, None] * stds))
