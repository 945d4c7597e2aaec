"""autotimm's ImageClassifier and AutoTrainer, which looks for the learning rate itself, as its guide has them.

A tenth of the pool is its validation set, whose best epoch is taken. Images are enlarged to 112 px if they are small,
else resized to 224, and normalised as the weights expect. Not compiled: on a processor that takes minutes of the
budget. As many epochs as the budget allows, 50 at most.

Its search for a learning rate reads a checkpoint of its own back, which torch from 2.6 on refuses; autotimm then goes
on from the weights that the search has spoilt. torch is told to read it.
"""

import os
import time
from pathlib import Path
from typing import Any

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
import torch
from autotimm import (  # type: ignore[import-not-found, unused-ignore]
    AutoTrainer,
    ImageClassifier,
    ImageDataModule,
    MetricConfig,
    TransformConfig,
    TunerConfig,
)
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import RandomHorizontalFlip

from tests.benchmarks.peers.contract import (
    digest_of_weights,
    epochs_within,
    finish,
    read_task,
    seconds_of_steps,
    steps_of_finder,
)
from tests.benchmarks.peers.weights import ARCH


def main() -> None:
    """Does it."""
    task = read_task()
    torch.manual_seed(task.seed)
    Path("images").mkdir()
    Path("images/train").symlink_to(task.pool)
    transforms = TransformConfig(preset="default", image_size=task.image_size(), use_timm_config=True)
    data = ImageDataModule(
        data_dir="images",
        batch_size=32,
        image_size=task.image_size(),
        num_workers=task.cores - 1,
        transform_config=transforms,
        backbone=ARCH,
        pin_memory=False,
    )
    if not task.mirrored:
        steps = data.train_transforms.transforms
        data.train_transforms.transforms = [each for each in steps if not isinstance(each, RandomHorizontalFlip)]
    data.setup("fit")
    metric = MetricConfig(
        name="accuracy",
        backend="torchmetrics",
        metric_class="Accuracy",
        params={"task": "multiclass"},
        stages=["train", "val"],
    )

    def classifier() -> ImageClassifier:
        return ImageClassifier(
            ARCH, len(task.classes()), metrics=[metric], transform_config=transforms, compile_model=False
        )

    step = _seconds_of_a_step(classifier(), data)
    num_val = len(data.val_dataloader())
    # A validation image costs a third of a training image.
    of_epoch = step * (len(data.train_dataloader()) + num_val / 3)
    of_finder = steps_of_finder(task.left(), step)
    epochs = epochs_within(task.left() - of_finder * step, of_epoch, most=50)
    print(f"{of_epoch:.1f} s an epoch, {epochs} epochs", flush=True)
    model = classifier()
    trainer = AutoTrainer(
        max_epochs=epochs,
        accelerator="cpu",
        seed=task.seed,
        tuner_config=TunerConfig(
            auto_batch_size=False, lr_find_kwargs={**(TunerConfig().lr_find_kwargs or {}), "num_training": of_finder}
        ),
        checkpoint_monitor="val/accuracy",
        checkpoint_mode="max",
        enable_progress_bar=False,
    )
    trainer.fit(model, datamodule=data)
    ended = time.monotonic()
    test = [data.eval_transforms(Image.open(file).convert("RGB")) for file in task.test_files()]
    loader: Any = DataLoader(test, batch_size=32)  # type: ignore[arg-type, unused-ignore]
    # Its checkpoint, written a moment ago, holds objects of its own.
    probabilities = torch.cat(trainer.predict(model, loader, ckpt_path="best", weights_only=False))
    classes = [data.class_names[int(place)] for place in probabilities.argmax(dim=1)]
    score = float(trainer.checkpoint_callback.best_model_score)
    done = {"epochs": epochs, "lr": float(model._lr), "accuracy_val": score}
    finish(task, ended, classes, ["autotimm", "torch", "timm"], digest_of_weights(ARCH), **done)


def _seconds_of_a_step(model: ImageClassifier, data: ImageDataModule) -> float:
    optimizer = torch.optim.AdamW(model.parameters())

    def step(batch: Any) -> None:
        images, labels = batch
        torch.nn.functional.cross_entropy(model.train()(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return seconds_of_steps(data.train_dataloader(), step)


if __name__ == "__main__":
    main()
