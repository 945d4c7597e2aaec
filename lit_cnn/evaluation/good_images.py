"""Forward passes over images some of which may not be images."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from lit_cnn.core.errors import UsageError
from lit_cnn.evaluation.predict import (
    LOADING,
    Loading,
    Network,
    ViewImages,
    batches_of,
    run_network,
    stack_views,
)


class _GoodViews(Dataset[tuple[torch.Tensor, list[UsageError | None]]]):
    """Views of those images that can be decoded, and for each image None, or why it cannot.

    Args:
        views: The views of all images.
    """

    def __init__(self, views: ViewImages) -> None:
        self.views = views

    def __len__(self) -> int:
        return len(self.views)

    def __getitems__(self, positions: Sequence[int]) -> tuple[torch.Tensor, list[UsageError | None]]:
        good: list[np.ndarray] = []
        errors: list[UsageError | None] = []
        for position in positions:
            try:
                good.append(self.views.views(position))
                errors.append(None)
            except UsageError as error:
                errors.append(error)
        return stack_views(good) if good else torch.empty(0), errors


def forward_good(
    network: Network, views: ViewImages, loading: Loading = LOADING, label: str = ""
) -> Iterator[np.ndarray | UsageError]:
    """Runs a network over images as `forward_batches` does, and yields their rows while others are being decoded.

    Args:
        network: What is run.
        views: One view of each image.
        loading: How many at a time, and how they are read.
        label: Of the progress bar.

    Yields:
        In the order of the images `(K,)` float32, or why the image cannot be decoded.
    """
    for good, errors in batches_of(_GoodViews(views), views, loading, label):
        rows = iter(run_network(network, good, loading)[:, 0].numpy() if len(good) else ())
        for error in errors:
            yield next(rows) if error is None else error
