"""What a network says of each test image, kept for the report of its run."""

from typing import Any

import lightning.pytorch as pl
import torch


class TestOutputs(pl.Callback):
    """Keeps the class predicted for each image and its probability, in the order in which this process tests images.

    Attributes:
        batches: Of each batch, from the logits that `test_step` returns, on the CPU: `(N, 2)` float64, label and
            probability in [0, 1].
        logits: Of each batch, `(N, K)` float32 on the CPU; none unless they are asked for.
    """

    __test__ = False  # no test, whatever pytest makes of its name

    def __init__(self, keeps_logits: bool = False) -> None:
        self.batches: list[torch.Tensor] = []
        self.logits: list[torch.Tensor] = []
        self._keeps_logits = keeps_logits

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets an earlier test."""
        self.batches.clear()
        self.logits.clear()

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Keeps those of the batch."""
        if isinstance(outputs, torch.Tensor):
            logits = outputs.detach().cpu().float()
            labels = logits.argmax(1)
            confidence = logits.double().softmax(1).gather(1, labels[:, None])
            self.batches.append(torch.cat([labels[:, None].double(), confidence], dim=1))
            if self._keeps_logits:
                self.logits.append(logits)
