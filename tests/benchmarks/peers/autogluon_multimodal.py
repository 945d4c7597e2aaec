"""AutoGluon's MultiModalPredictor for images, with a time limit.

Its defaults (AdamW with layer-wise rates, TrivialAugment, at most 20 epochs, the mean of the three best checkpoints),
but for the network, and for what its preset for a network of this size has: the learning rate of `medium_quality`.
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
        "env.num_gpus": 0,
        "env.accelerator": "cpu",
        "env.precision": 32,
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
    done = {"accuracy_val": float(predictor._learner._best_score or 0.0)} if hasattr(predictor, "_learner") else {}
    finish(task, ended, classes, ["autogluon.multimodal", "torch", "timm"], digest_of_weights(ARCH), **done)


if __name__ == "__main__":
    main()
