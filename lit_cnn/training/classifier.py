"""`LitClassifier`: the one LightningModule, around every architecture and every transfer regime."""

import math
from typing import Any, Literal, Self

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torchmetrics import MetricCollection

from lit_cnn.core.precision import train_depthwise_in_float32
from lit_cnn.core.randomness import torch_seed
from lit_cnn.data.batches import Batch
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.models import resolve_arch
from lit_cnn.models.heads import Head
from lit_cnn.training.feature_cache import FeatureCacheMode
from lit_cnn.training.linked import check_setup, linked_options, own_options, record_of
from lit_cnn.training.losses import NonFiniteLossError, balanced_weights, cross_entropy, losses_of_step
from lit_cnn.training.metrics import TrainSums, evaluation_metrics, log_now, train_means
from lit_cnn.training.mixing import build_mixing
from lit_cnn.training.optimization import (
    HeadSolver,
    PathSolver,
    Schedule,
    check_numbers,
    fused_can_clip,
    optimizer_of,
    rewrite_rates,
    with_schedule,
)
from lit_cnn.training.steps import total_steps
from lit_cnn.training.transfer import Freezer, Regime, SplitNet, resolve_regime
from lit_cnn.training.weights import build_network


class LitClassifier(pl.LightningModule):
    """An image classifier: network, loss, metrics and optimizer.

    It takes uint8 images and normalises them itself, so whoever holds its checkpoint needs no other preprocessing than
    a resize. All arguments are plain values, so a checkpoint reloads with `weights_only=True`. `for_data` takes those
    that belong to the images from a data module.

    Args:
        arch: Name of the architecture: ours first, else timm's; `torchvision/NAME` for one of torchvision's. `lit/NAME`
            and `timm/NAME` force the origin too.
        arch_options: Options of that architecture.
        weights: What to start from: `pretrained` (timm's or torchvision's own), `offline`, a file, `runs:/RUN_ID` or
            `models:/NAME@ALIAS` (see `lit_cnn.training.weights`); default none.
        transfer: Which stages train (see `lit_cnn.training.transfer`): `scratch` all, from no weights; `head_only` a
            new head; `last_stages` that and the last stages; `full` all; `gradual` stage after stage; `auto` one of
            these by the number of training images. By default `full` with weights, else `scratch`.
        train_stages: How many stages before the head train in `last_stages`.
        unfreeze_every: Epochs from one stage to the next in `gradual`.
        cut_at: Number of the last stage to keep, as `lit-cnn describe ARCH --stages` counts; by default all are kept.
        head: `linear`, or `mlp` with a hidden layer of 256.
        feature_cache: How features of what is frozen are kept on disk: `bf16`, `fp16` or `fp32`; `off` computes them at
            every step (see `lit_cnn.training.feature_cache`, which also says when it is used).
        feature_cache_gb: Gigabytes (10^9 bytes) that cached features of all runs may take; those longest unused go.
        head_solver: `sgd`: the optimizer below, step by step. `lbfgs`: a linear head on cached features of unaugmented
            images is solved for by L-BFGS, one L2 penalty an epoch, from 1 down to 1e-4; val says which was best.
            Optimizer, rates, schedule and batch size are then ignored.
        optimizer: One of timm's optimizers, for example adamw or sgd.
        lr: Learning rate; with a schedule its highest value.
        weight_decay: Weight decay; biases and normalisation weights are left out.
        optimizer_options: More of the optimizer's own arguments.
        layer_decay: Factor on the learning rate from each layer to the one before it, in (0, 1]; 1 is none.
        head_lr_factor: Factor on the learning rate of the head.
        schedule: `constant`, `one_cycle` (a rise, then a cosine to 0) or `cyclic` (that several times), step by step.
        cycles: How many, of `cyclic`; each ends with an epoch, and its weights are kept as a snapshot.
        warmup_fraction: Share of the run, or of each cycle, in which the learning rate rises.
        label_smoothing: Share of the target spread evenly over all classes (Szegedy et al. 2015, section 7).
        mixup: Alpha of mixup (Zhang et al. 2017, "mixup"): each image of a batch is averaged with its neighbour, with a
            weight from Beta(alpha, alpha), and so are the targets; 0 is off. 0.2 is common.
        cutmix: Alpha of CutMix (Yun et al. 2019): a rectangle of each image is its neighbour's, targets by area; 0 is
            off, 1.0 is common. With both, each batch gets one of them, drawn at random.
        class_weights: `balanced`: in the training loss an image of a class weighs as much as the class is rare, 1 on
            average: n / (number of classes * images of its class).
        num_classes: Number of classes; linked from the data.
        in_channels: 1 or 3; linked from the data.
        image_size: Pixels of the square that the network takes; linked from the data.
        class_names: Class names in label order; linked from the data.
        class_counts: Training images of each class; linked from the data.
        mean: Mean per channel of pixels in [0, 1]; linked from the data.
        std: Standard deviation per channel; linked from the data.
        interpolation: How images are resized; linked from the data.
        crop_pct: Share of the shorter side that validation sees; linked from the data.
        seed: Training seed, for initial weights and dropout; linked from the data's.
        pixel_range: Which values of more than 8 bits are black and white; linked from the data.
        background: What lies behind transparent pixels, RGB from 0 to 255; linked from the data.

    Raises:
        UsageError: If the architecture, its options, its weights, the regime or the optimizer cannot be had.

    Example:
        >>> data = lit_cnn.ImageDataModule("digits")
        >>> model = lit_cnn.LitClassifier.for_data(data, arch="lenet5", lr=0.002)
        >>> model.hparams["num_classes"], model.hparams["image_size"]
        (10, 32)
    """

    mean: torch.Tensor
    std: torch.Tensor
    loss_weights: torch.Tensor | None

    def __init__(
        self,
        arch: str = "lenet5",
        arch_options: dict[str, Any] | None = None,
        weights: str | None = None,
        transfer: Regime | Literal["auto"] | None = None,
        train_stages: int = 1,
        unfreeze_every: int = 1,
        cut_at: int | None = None,
        head: Head = "linear",
        feature_cache: FeatureCacheMode = "bf16",
        feature_cache_gb: float = 10.0,
        head_solver: HeadSolver = "sgd",
        optimizer: str = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        optimizer_options: dict[str, Any] | None = None,
        layer_decay: float = 1.0,
        head_lr_factor: float = 1.0,
        schedule: Schedule = "one_cycle",
        cycles: int | None = None,
        warmup_fraction: float = 0.25,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        class_weights: Literal["balanced"] | None = None,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 32,
        class_names: list[str] | None = None,
        class_counts: list[int] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        interpolation: str = "area",
        crop_pct: float = 1.0,
        seed: int = 0,
        pixel_range: list[float] | None = None,
        background: list[int] | None = None,
    ) -> None:
        # Not as save_hyperparameters finds them by itself: a subclass's own are no part of the checkpoint.
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        check_numbers(lr, weight_decay, warmup_fraction, label_smoothing, layer_decay, head_lr_factor)
        self.mix = build_mixing(mixup, cutmix, num_classes)
        arch = resolve_arch(arch)
        transfer = resolve_regime(transfer, weights, class_counts)
        self.save_hyperparameters({**given, "arch": arch, "transfer": transfer})
        # The initial weights belong to the seed, whatever was drawn before.
        torch.manual_seed(torch_seed("init", seed))
        self.net, self.weights_note, self.weights_trained_on = build_network(self.hparams)
        self.freezer = Freezer(self.net, arch, transfer, train_stages, unfreeze_every)
        self.class_names = class_names or [str(label) for label in range(num_classes)]
        self.register_buffer("mean", _channels(mean, 0.5, in_channels), persistent=False)
        self.register_buffer("std", _channels(std, 0.5, in_channels), persistent=False)
        weights_of_classes = balanced_weights(class_counts) if class_weights is not None else None
        self.register_buffer("loss_weights", weights_of_classes, persistent=False)
        # Kept in the checkpoint, so that an epoch's mean is that of the whole epoch even if a resume fell inside it.
        self._train_sums = TrainSums(1 + len(self.aux_weights))
        self._memory_format = torch.contiguous_format
        self.split: SplitNet | None = None  # set while features stand in for images
        self.run_record: dict[str, Any] = {}
        self.last_loss = math.nan
        self.val_metrics = evaluation_metrics(num_classes, "val/")
        self.test_metrics = evaluation_metrics(num_classes, "test/")
        self.train()

    @classmethod
    def for_data(
        cls,
        data: ImageDataModule,
        arch: str = "lenet5",
        transfer: Regime | Literal["auto"] | None = None,
        weights: str | None = None,
        **options: Any,
    ) -> Self:
        """Returns a classifier for the images of a data module, as `lit-cnn fit` builds it from the same options.

        Classes, channels, image size, mean and standard deviation, interpolation and seed are the data's. Weights that
        expect images of a certain size, mean and standard deviation get them, wherever the data module was not given
        others.

        Args:
            data: The images; what the weights expect of them is set here, so do this before anything reads them.
            arch: Name of the architecture.
            transfer: Which stages train.
            weights: What to start from.
            **options: More of the class's arguments.

        Raises:
            UsageError: If the images, the architecture or the weights cannot be had, or an option is refused.

        Example:
            >>> from lit_cnn.data.datamodule import ImageDataModule
            >>> from lit_cnn.training.classifier import LitClassifier
            >>> data = ImageDataModule("digits", image_size=32)
            >>> model = LitClassifier.for_data(data, arch="lenet5", lr=0.002)
            >>> model.hparams["num_classes"], model.hparams["image_size"], model.hparams["mean"] == data.mean
            (10, 32, True)
        """
        return cls(arch=arch, weights=weights, transfer=transfer, **linked_options(data, arch, weights), **options)

    def for_other_data(self, data: ImageDataModule) -> Self:
        """Returns a classifier built anew by the same arguments, for the images of another data module."""
        return type(self).for_data(data, **own_options(self.hparams))

    def train(self, mode: bool = True) -> "LitClassifier":
        """Puts what trains into train mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        self.freezer.keep_frozen_in_eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits `(N, num_classes)` for images `(N, C, S, S)`, uint8 in [0, 255], or for cached features."""
        if images.is_floating_point():
            assert self.split is not None
            if not self.solves_head:
                return self.split.late[self.training](self._laid_out(images))
            # The line search of L-BFGS compares losses that bfloat16 does not tell apart.
            with torch.autocast(self.device.type, enabled=False):
                return self.split.late[self.training](images.float())
        return self.net(self.normalize(images))

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Returns `(images / 255 - mean) / std`, float, for uint8 images `(N, C, S, S)`."""
        return self._laid_out((images.float() / 255 - self.mean) / self.std)

    def _laid_out(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.contiguous(memory_format=self._memory_format) if maps.ndim == 4 else maps

    @property
    def solves_head(self) -> bool:
        """Whether a step finds the head's weights at once."""
        return self.hparams["head_solver"] == "lbfgs"

    @property
    def aux_weights(self) -> tuple[float, ...]:
        """The weight of each side branch's loss; none without side branches, or where what they train is frozen."""
        return () if self.freezer.freezes else tuple(getattr(self.net, "aux_weights", ()))

    def losses(self, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Returns the loss to minimise and its parts; see `losses_of_step`."""
        return losses_of_step(self, images, targets)

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        """Returns the classifier's own loss of its logits for views that are normalised, and perhaps mixed."""
        return cross_entropy(logits, targets, self.loss_weights, self.hparams["label_smoothing"])

    def setup(self, stage: str) -> None:
        """Lays the weights out for the trainer's precision: bfloat16 is fast with channels last.

        Raises:
            UsageError: If the data's images are not those that the network takes, or the trainer cannot train it.
        """
        check_setup(self.hparams, self.class_names, self.trainer)
        if self.solves_head and stage == "fit":
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit
            data.batch_size = len(data.splits.train)
        self.lay_out_for(str(self.trainer.precision))

    def lay_out_for(self, precision: str) -> None:
        """Lays the weights out for training in a precision, in Lightning's words."""
        if precision.startswith("bf16"):
            self.use_channels_last()
            train_depthwise_in_float32(self.net)

    def use_channels_last(self) -> None:
        """Lays out weights and images in memory as (N, H, W, C); shapes and values stay."""
        self._memory_format = torch.channels_last
        self.net.to(memory_format=torch.channels_last)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Gives dropout and the like a stream that belongs to (seed, global step); unfreezes what the epoch trains."""
        # Here, as a resume inside an epoch does not begin it again.
        if self.freezer.begin_epoch(self.current_epoch):
            self.train()
        seed = torch_seed("step", self.hparams["seed"], self.global_step, self.global_rank)
        # torch.manual_seed asks every backend there is and takes 2 ms, a tenth of LeNet-5's step.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Returns the loss of a batch; stops the run if it is not finite, before the weights are touched."""
        images, targets = batch
        loss, parts = self.losses(images, targets)
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteLossError(value, self.global_step, self.current_epoch, self.learning_rate)
        if self.solves_head:
            self._train_sums.reset()  # the last of its evaluations counts
        values = [part.item() for part in parts]
        self._train_sums.add(len(targets), values)
        self.last_loss = values[1]
        return loss

    def on_train_epoch_end(self) -> None:
        """Logs the epoch's mean training loss and accuracy; the sums start anew."""
        metrics = self.train_means()
        if self.solves_head:
            metrics["train/l2"] = self.trainer.optimizers[0].penalty  # type: ignore[attr-defined]  # a PathSolver
        log_now(self.trainer, metrics)
        self.log_dict(metrics, logger=False)
        self._train_sums.reset()

    def train_means(self) -> dict[str, float]:
        """Returns `train/loss` and `train/acc` over the epoch's images so far, on all devices.

        `train/loss` is the classifier's own; that of each side branch is `train/loss_aux1` and so on.
        """
        return train_means(self._train_sums.on_all_devices(self.trainer))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the validation metrics."""
        self._eval_step(batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Adds a batch to the test metrics; returns its logits `(N, num_classes)`."""
        return self._eval_step(batch, self.test_metrics)

    def predict_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """Returns class probabilities `(N, num_classes)`, float32."""
        return self._evaluate(batch).softmax(1)

    def on_validation_epoch_end(self) -> None:
        """Logs `val/loss`, `val/acc` and the others of `evaluation_metrics`."""
        self._log_evaluation(self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Logs `test/loss`, `test/acc` and the others of `evaluation_metrics`."""
        self._log_evaluation(self.test_metrics)

    def configure_optimizers(self) -> Any:
        """Returns the optimizer and its schedule, stepped after every batch."""
        if self.solves_head:
            head = [self.net.get_parameter(name) for name in self.freezer.head]
            return PathSolver(head, total_steps(self.trainer))
        optimizer = self.build_optimizer(fused_can_clip(self.trainer))
        return with_schedule(optimizer, self.hparams, total_steps(self.trainer))

    def build_optimizer(self, allows_fused: bool = True) -> torch.optim.Optimizer:
        """Returns a fresh optimizer of the network's parameters.

        Args:
            allows_fused: See `lit_cnn.training.optimization.build_optimizer`.

        Raises:
            UsageError: If there is none of that name, or it refuses its options.
        """
        self.freezer.unfreeze_for_optimizer()
        optimizer = optimizer_of(self.net, self.hparams, self.freezer.head, allows_fused)
        if self.freezer.begin_epoch(self.current_epoch):
            self.train()
        return optimizer

    @property
    def learning_rate(self) -> float:
        """The largest learning rate of all parameter groups, now."""
        return max(group["lr"] for group in self.trainer.optimizers[0].param_groups)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the record of the run, and the running sums of the epoch under way."""
        checkpoint["lit_cnn"] = self.run_record or record_of(self.hparams, self.class_names, self.trainer)
        checkpoint["train_sums"] = self._train_sums.on_all_devices(self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the running sums of the epoch under way; a new learning rate or weight decay wins over the saved."""
        if self.global_rank == 0:
            self._train_sums.values = torch.tensor(checkpoint["train_sums"], dtype=torch.float64)
        if not self.solves_head:
            rewrite_rates(checkpoint, self.hparams["lr"], self.hparams["weight_decay"])

    def _log_evaluation(self, metrics: MetricCollection) -> None:
        values = metrics.compute()
        metrics.reset()
        is_fit = self.trainer.state.fn == "fit"
        # Outside of a fit, what Lightning's validate and test return is what they log.
        self.log_dict(values, logger=False if is_fit else None)
        if is_fit and not self.trainer.sanity_checking:
            log_now(self.trainer, {name: value.item() for name, value in values.items()})

    def _evaluate(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits computed in float32 whatever training used, so that every machine gives the same."""
        with torch.autocast(self.device.type, enabled=False):
            return self(images)

    def _eval_step(self, batch: Batch, metrics: MetricCollection) -> torch.Tensor:
        logits, targets = self._evaluate(batch[0]), batch[1]
        losses = F.cross_entropy(logits, targets, reduction="none")
        for name, metric in metrics.items(keep_base=True):
            metric.update(losses) if name == "loss" else metric.update(logits, targets)
        return logits


def _channels(values: list[float] | None, default: float, in_channels: int) -> torch.Tensor:
    return torch.tensor(values or [default] * in_channels, dtype=torch.float32).reshape(1, -1, 1, 1)
