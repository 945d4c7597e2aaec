"""A rehearsal: a step, and the last batch of an epoch, on a copy of a run's network, before anything is written.

What would end a run at its first step, or at the last batch of its first epoch, is told at once, and by the option
that it is due to. The copy is thrown away and the random streams are put back, so a run's weights are those without.
"""

import copy
import math
import sys
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from lightning.pytorch.utilities.seed import isolate_rng

from lit_cnn.core.errors import UsageError
from lit_cnn.core.randomness import torch_seed
from lit_cnn.data.batches import Batch
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.image_sizes import resized, size_of_epoch
from lit_cnn.data.sampling import Key, TrainBatches
from lit_cnn.training.callbacks import RunCheckpoints
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.optimization import fused_can_clip, with_schedule
from lit_cnn.training.process import is_out_of_memory, too_large
from lit_cnn.training.steps import limited, steps_of_run
from lit_cnn.training.transfer import split_net

_MOST_IMAGES = 8  # that are decoded; a batch is made of their repetitions


def check_monitors(trainer: pl.Trainer, model: LitClassifier) -> None:
    """Refuses callbacks that watch a metric that nobody logs.

    Nothing is refused where callbacks of the user's own may log it.

    Raises:
        UsageError: With the metrics that there are.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    own = any(type(each).__module__.partition(".")[0] not in ("lightning", "lit_cnn") for each in callbacks)
    losses = ["train/loss", *(f"train/loss_aux{number + 1}" for number in range(len(model.aux_weights)))]
    known = [*sorted(str(name) for name in model.val_metrics), *losses, "train/acc"]
    for each in callbacks:
        if isinstance(each, EarlyStopping | ModelCheckpoint | RunCheckpoints):
            monitor, is_ours = each.monitor, isinstance(each, RunCheckpoints)
            names = [name for name in known if name.startswith("val/")] if is_ours else known
            if monitor is not None and monitor not in names and (is_ours or not own):
                where = "" if is_ours else f" of {type(each).__name__}"
                raise UsageError("monitor", monitor, f"no such metric{where}", f"choose one of {', '.join(names)}")


def rehearse(trainer: pl.Trainer, model: LitClassifier, data: ImageDataModule, cached: bool, is_new: bool) -> None:
    """Makes a step in the run's precision and with its optimizer, and computes the loss of an epoch's last batch.

    Where an epoch's last batch is one image a device, and only that cannot be trained on (BatchNorm at 1 x 1 pixels
    has nothing to normalise by), it joins the batch before it: `data.merges_last_batch`. That is said.

    Args:
        trainer: Of the run.
        model: Stays as it is.
        data: Likewise, but for `merges_last_batch`.
        cached: Whether the run trains on cached features.
        is_new: Whether it starts from the model's weights, so that it is known whether its first step is finite.

    Raises:
        UsageError: Naming the option to which it is due that a step fails.
    """
    data.merges_last_batch = False
    _check_image_sizes(data, model, trainer.max_epochs)
    if model.solves_head or not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        return  # no batches; or the network is shared out among devices
    rehearsal = _Rehearsal(trainer, model, data, cached)
    with isolate_rng(include_cuda=trainer.strategy.root_device.type == "cuda"):
        try:
            losses = rehearsal.steps(rehearsal.sizes)
        except UsageError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise too_large(data.batch_size) from error
            losses = rehearsal.explain(error)
        for size in data.options["image_sizes"] or ():
            rehearsal.check_size(size)
        # A few images again and again need not give what a batch of the run gives.
        if is_new and not all(map(math.isfinite, losses)) and getattr(model.net, "is_whitened", True):
            rehearsal.refuse_not_finite()


def _check_image_sizes(data: ImageDataModule, model: LitClassifier, max_epochs: int | None) -> None:
    """Refuses sizes that a run cannot go through; whether the network takes them, a step tells."""
    sizes = data.options["image_sizes"]
    if not sizes:
        return
    if model.solves_head:
        raise UsageError("image_sizes", sizes, "a head that lbfgs solves for sees its images once", "leave it out")
    if max(sizes) > data.image_size:
        raise UsageError("image_sizes", sizes, f"are to be at most `image_size={data.image_size}`", "give smaller ones")
    size_of_epoch(sizes, 0, max_epochs)


@dataclass(frozen=True)
class _Rehearsal:
    """Steps on copies of a network, with images of the run's first batch."""

    trainer: pl.Trainer
    model: LitClassifier
    data: ImageDataModule
    cached: bool

    @cached_property
    def batches(self) -> TrainBatches:
        """The run's."""
        return self.data.train_batches(self.trainer.global_rank, self.trainer.world_size)

    @cached_property
    def sizes(self) -> list[int]:
        """The sizes of an epoch's batches, each once, in their order."""
        return list(dict.fromkeys(self.batches.sizes[: limited(len(self.batches), self.trainer.limit_train_batches)]))

    def steps(self, sizes: list[int], **changed: Any) -> list[float]:
        """Returns the losses of steps with batches of these sizes; see `_train`. One comes after a step in any case."""
        images, labels = self._read(next(iter(self.batches))[:_MOST_IMAGES])
        all_sizes = sizes if len(sizes) > 1 else [*sizes, min(sizes[0], _MOST_IMAGES)]
        places = [torch.arange(size) % len(labels) for size in all_sizes]
        return self._train([(images, labels, place) for place in places], **changed)

    def explain(self, error: Exception) -> list[float]:
        """Finds what a failure is due to; returns the losses if it is a last batch of one image, which joins another.

        Raises:
            UsageError: If it is not.
        """
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        hparams, trainer, first, last = self.model.hparams, self.trainer, self.sizes[0], self.sizes[-1]
        if last < first and (losses := self._try([first])) is not None:
            if last > 1:
                fails = f"the last batch of an epoch, {last} images, cannot be trained on: {reason}"
                raise UsageError("batch_size", self.data.batch_size, fails, "give another") from error
            self.data.merges_last_batch = True
            if trainer.is_global_zero:
                what = "the last batch of an epoch would be one image, on which alone this network cannot be trained"
                print(f"lit-cnn: {what}; it joins the batch before", file=sys.stderr)
            return losses
        if first == 1 and self._try([2]) is not None:
            if self.data.batch_size > trainer.world_size:
                fails = f"one image to train on, on which alone this network cannot be trained: {reason}"
                option = "root" if self.data.options["limit_train"] is None else "limit_train"
                raise UsageError(option, self.data.options[option], fails, "give more") from error
            raise UsageError("batch_size", self.data.batch_size, f"one image a step: {reason}", "give more") from error
        clip, precision, optimizer = trainer.gradient_clip_val, trainer.precision, hparams["optimizer"]
        suspects: list[tuple[str, Any, str, dict[str, Any]]] = [
            ("gradient_clip_val", clip, "leave it out, or take fused out of `optimizer_options`", {"clips": False}),
            ("precision", precision, "give bf16-mixed or 32-true", {"precision": Precision()}),
            ("optimizer", optimizer, "give another, for example adamw", {"optimizes": False}),
        ]
        for option, value, remedy, plain in suspects:
            if self._try([first], **plain) is not None:
                raise UsageError(option, value, f"a training step fails: {reason}", remedy) from error
        what = f"a training step at `image_size={self.data.image_size}` fails: {reason}"
        raise UsageError("arch", hparams["arch"], what, "give another size, or other `arch_options`") from error

    def check_size(self, size: int) -> None:
        """Makes a step with smaller images.

        Raises:
            UsageError: If the network does not take them.
        """
        images, labels = self._read(next(iter(self.batches))[:_MOST_IMAGES])
        try:
            self._train([(resized(images, size), labels, torch.arange(len(labels)))])
        except Exception as error:
            reason = f"{self.model.hparams['arch']}, made for {self.data.image_size} px, does not take it"
            why = " ".join(str(error).split())[:100]
            remedy = "give others, or leave `image_sizes` out: not every network takes images of any size"
            raise UsageError("image_sizes", size, f"{reason} ({why})", remedy) from error

    def refuse_not_finite(self) -> None:
        """Repeats the first two steps with the run's own images.

        Raises:
            UsageError: If a loss is not finite then either.
        """
        keys = list(islice(self.batches, 2))
        batches = [self._read(each) for each in (keys if len(keys) > 1 else keys * 2)]
        before, *after = self._train([(*batch, torch.arange(len(batch[0]))) for batch in batches])
        hparams = self.model.hparams
        if not math.isfinite(before):
            option = "weights" if hparams["weights"] else "arch"
            raise UsageError(option, hparams[option], f"the loss of the first batch is {before}", "give another")
        if not all(map(math.isfinite, after)):
            raise UsageError("lr", hparams["lr"], f"the loss is {after[0]} after the first step", "give a lower one")

    def _try(self, sizes: list[int], **changed: Any) -> list[float] | None:
        try:
            return self.steps(sizes, **changed)
        except Exception:  # whatever it is, this is not the way out
            return None

    def _read(self, keys: list[Key]) -> Batch:
        return self.data.train_images().__getitems__(keys)

    def _train(
        self,
        batches: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
        precision: Precision | None = None,
        clips: bool = True,
        optimizes: bool = True,
    ) -> list[float]:
        """Makes a step with the first batch on a copy; returns its loss, and those of the others after it.

        Args:
            batches: Images `(M, C, S, S)`, labels `(M,)`, and which of them, `(N,)`, are in the batch.
            precision: In place of the trainer's.
            clips: Whether gradients are clipped, if the trainer clips them.
            optimizes: Whether the run's optimizer makes the steps, and not plain SGD.
        """
        trainer, plugin = self.trainer, precision or self.trainer.precision_plugin
        unused = {id(each): each for each in (self.model.val_metrics, self.model.test_metrics)}
        model = copy.deepcopy(self.model, unused).to(trainer.strategy.root_device)
        model.lay_out_for(str(plugin.precision))
        plugin.convert_module(model)
        model.freezer.unfreeze_for_optimizer()  # as in the last epoch
        model.train()
        own = model.build_optimizer(allows_fused=fused_can_clip(trainer))
        optimizer = own if optimizes else torch.optim.SGD(model.parameters(), lr=1e-3)
        with_schedule(optimizer, model.hparams, steps_of_run(trainer, len(self.batches)))  # sets the first rates
        model.split = split_net(model.net) if self.cached else None
        losses: list[torch.Tensor] = []

        def forward(images: torch.Tensor, targets: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
            """Returns the loss of a batch, and keeps it."""
            with plugin.train_step_context():
                if model.split is not None:
                    images = model.split.frozen(model.normalize(images)).detach()
                loss, _ = model.losses(images[places], targets[places])
            losses.append(loss.detach())
            return loss

        def closure() -> float:
            """Computes the loss of the first batch and its gradients, as Lightning has an optimizer do."""
            optimizer.zero_grad()
            loss = forward(*batch)
            loss.backward()
            if clips and trainer.gradient_clip_val:
                algorithm = trainer.gradient_clip_algorithm or GradClipAlgorithmType.NORM
                plugin.clip_gradients(optimizer, trainer.gradient_clip_val, algorithm)
            return loss.item()

        for number, batch in enumerate([each.to(model.device) for each in tensors] for tensors in batches):
            torch.manual_seed(torch_seed("step", model.hparams["seed"], number, trainer.global_rank))
            if number == 0:
                optimizer.step(closure)
                continue
            # What depends on a batch's size fails on its way forward, at a third of a step's time.
            with torch.no_grad():
                forward(*batch)
        return [loss.item() for loss in losses]
