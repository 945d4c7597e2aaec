"""AutoGluon's MultiModalPredictor for images, with a time limit.

Its defaults (AdamW with layer-wise rates, TrivialAugment, at most 20 epochs, a greedy soup of the three best
checkpoints) and its preset for networks of this size, `medium_quality`, whose learning rate is 0.0004; but for the
network itself. Images are enlarged to 112 px if they are small, else resized to 224. Of fewer than 1,000 images an
optimizer step takes 32 instead of 128, of which an epoch would have one or none.
"""

import time

import pandas
from autogluon.multimodal import MultiModalPredictor  # type: ignore[import-not-found, unused-ignore]

from tests.benchmarks.peers.contract import digest_of_weights, finish, read_task
from tests.benchmarks.peers.weights import ARCH


def main() -> None:
    """Does it."""
    task = read_task()
    pool = [(str(file), folder.name) for folder in sorted(task.pool.iterdir()) for file in sorted(folder.iterdir())]
    predictor = MultiModalPredictor(label="label", problem_type="multiclass", eval_metric="accuracy", path="model")
    options = {
        "model.names": ["timm_image"],
        "model.timm_image.checkpoint_name": ARCH,
        "model.timm_image.image_size": task.image_size(),
        "env.num_gpus": 0,
        "env.accelerator": "cpu",
        "env.precision": 32,
        "env.batch_size": 32 if len(pool) < 1000 else 128,
        "env.per_gpu_batch_size": 32,
        "env.num_workers": task.cores - 1,
        "env.num_workers_inference": task.cores - 1,
    }
    predictor.fit(
        pandas.DataFrame(pool, columns=["image", "label"]),
        presets="medium_quality",
        hyperparameters=options,
        time_limit=int(task.left()),
        seed=task.seed,
    )
    ended = time.monotonic()
    test = pandas.DataFrame({"image": [str(file) for file in task.test_files()]})
    classes = [str(name) for name in predictor.predict(test)]
    finish(task, ended, classes, ["autogluon.multimodal", "torch", "timm"], digest_of_weights(ARCH))


if __name__ == "__main__":
    main()
