"""fastai's usual recipe: `vision_learner`, `lr_find`, `fine_tune`, with as many epochs as the budget allows.

A fifth of the pool is its validation set. Images are enlarged to 112 px if they are small, else resized to 224;
`aug_transforms` augments them. An epoch is measured on a few batches of a learner that is thrown away. The 50 epochs
that are the most bind only where there are few images.
"""

import time
from typing import Any

from fastai.vision.all import (  # type: ignore[import-not-found, unused-ignore]
    ImageDataLoaders,
    Resize,
    accuracy,
    aug_transforms,
    set_seed,
    vision_learner,
)

from tests.benchmarks.peers.contract import (
    digest_of_weights,
    epochs_within,
    finish,
    read_task,
    seconds_of_steps,
    steps_of_finder,
)
from tests.benchmarks.peers.weights import ARCH

_FROZEN = 1  # epochs of `fine_tune` in which the head alone trains


def main() -> None:
    """Does it."""
    task = read_task()
    set_seed(task.seed, reproducible=False)
    size = task.image_size()
    data = ImageDataLoaders.from_folder(
        task.pool,
        valid_pct=0.2,
        seed=task.seed,
        item_tfms=Resize(size),
        batch_tfms=aug_transforms(do_flip=task.mirrored, size=size),
        bs=min(32, sum(1 for _ in task.pool.glob("*/*")) // 10),
        num_workers=task.cores - 1,
    )
    step = _seconds_of_a_step(data)
    learner = vision_learner(data, ARCH, metrics=accuracy, path=task.output)
    found = learner.lr_find(show_plot=False, num_it=steps_of_finder(task.left(), step))
    # A validation image costs a third of a training image.
    of_epoch = step * (len(data.train) + len(data.valid) / 3)
    epochs = epochs_within(task.left() - _FROZEN * of_epoch, of_epoch, most=50)
    print(f"{of_epoch:.1f} s an epoch, {epochs} epochs, learning rate {found.valley:.2g}", flush=True)
    learner.fine_tune(epochs, base_lr=found.valley, freeze_epochs=_FROZEN)
    ended = time.monotonic()
    probabilities, _ = learner.get_preds(dl=data.test_dl(task.test_files()))
    classes = [data.vocab[int(place)] for place in probabilities.argmax(dim=1)]
    done = {"epochs": epochs, "lr": float(found.valley)}
    finish(task, ended, classes, ["fastai", "torch", "timm"], digest_of_weights(ARCH), **done)


def _seconds_of_a_step(data: ImageDataLoaders) -> float:
    """Returns the seconds of a training step of the whole network, loading included."""
    learner = vision_learner(data, ARCH)
    learner.unfreeze()
    learner.create_opt()

    def step(batch: Any) -> None:
        images, labels = batch
        learner.loss_func(learner.model.train()(images), labels).backward()
        learner.opt.step()
        learner.opt.zero_grad()

    return seconds_of_steps(data.train, step)


if __name__ == "__main__":
    main()
