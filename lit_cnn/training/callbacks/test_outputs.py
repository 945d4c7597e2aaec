"""What a network says of each test image, kept for the report of its run."""

from typing import Any

import lightning.pytorch as pl
import torch


class TestOutputs(pl.Callback):
    """Keeps the logits that `test_step` returns, in the order in which this process tests its images.

    Attributes:
        batches: Logits `(N, K)` of each batch, on the CPU.
    """

    __test__ = False  # no test, whatever pytest makes of its name

    def __init__(self) -> None:
        self.batches: list[torch.Tensor] = []

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets an earlier test."""
        self.batches.clear()

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Keeps the batch's logits."""
        if isinstance(outputs, torch.Tensor):
            self.batches.append(outputs.detach().cpu())
