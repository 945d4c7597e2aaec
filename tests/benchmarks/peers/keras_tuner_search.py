"""KerasTuner's RandomSearch over the space of `tests/benchmarks/search.py`, and its winner with new seeds.

LeNet-5 with ReLU, max pooling and AdamW; the rate rises over a quarter of the steps and falls to nothing, by cosines. A
trial counts with its best epoch, and so does a winner, whose weights of that epoch are tested.
"""

import argparse
import importlib.metadata
import json
import math
import time
from pathlib import Path
from typing import Any

import keras  # type: ignore[import-not-found, unused-ignore]
import keras_tuner  # type: ignore[import-not-found, unused-ignore]
import numpy as np


class OneCycle(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc, unused-ignore]
    """Rises from a 25th of the rate to it, and falls to nothing, as torch's OneCycleLR."""

    def __init__(self, rate: float, steps: int) -> None:
        self.rate, self.steps = rate, steps

    def __call__(self, step: Any) -> Any:
        """Returns the rate of a step."""
        ops, warm_up = keras.ops, 0.25 * self.steps
        step = ops.cast(step, "float32")
        rising = self.rate / 25 + (self.rate - self.rate / 25) * (1 - ops.cos(math.pi * step / warm_up)) / 2
        falling = self.rate * (1 + ops.cos(math.pi * (step - warm_up) / (self.steps - warm_up))) / 2
        return ops.where(step < warm_up, rising, falling)

    def get_config(self) -> dict[str, Any]:
        """Returns what it was made with."""
        return {"rate": self.rate, "steps": self.steps}


class Searched(keras_tuner.HyperModel):  # type: ignore[misc, unused-ignore]
    """LeNet-5 with what is searched."""

    def __init__(self, side: int, num_train: int, epochs: int) -> None:
        self.side, self.num_train, self.epochs = side, num_train, epochs

    def build(self, hp: Any) -> keras.Model:
        """Returns the compiled network."""
        layers = keras.layers
        net = keras.Sequential(
            [
                keras.Input((self.side, self.side, 1)),
                layers.Rescaling(1 / 127.5, -1),
                *([layers.Resizing(32, 32)] if self.side < 28 else []),
                layers.Conv2D(6, 5, padding="same", activation="relu"),
                layers.MaxPool2D(),
                layers.Conv2D(16, 5, activation="relu"),
                layers.MaxPool2D(),
                layers.Flatten(),
                layers.Dense(120, activation="relu"),
                layers.Dense(84, activation="relu"),
                layers.Dense(10),
            ]
        )
        steps = self.epochs * math.ceil(self.num_train / hp.Choice("data.batch_size", [32, 64, 128, 256]))
        rate = OneCycle(hp.Float("model.lr", 1e-4, 0.1, sampling="log"), steps)
        decay = hp.Float("model.weight_decay", 1e-4, 0.3, sampling="log")
        loss = keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=hp.Float("model.label_smoothing", 0.0, 0.2)
        )
        net.compile(keras.optimizers.AdamW(rate, weight_decay=decay), loss, metrics=["accuracy"])
        return net

    def fit(self, hp: Any, model: keras.Model, *args: Any, **kwargs: Any) -> Any:
        """Trains it."""
        return model.fit(*args, batch_size=hp.get("data.batch_size"), **kwargs)


def main() -> None:
    """Searches, trains the winner anew, and writes what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("output", type=Path)
    for name in ("trials", "epochs", "seed", "new_seeds"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    began = time.monotonic()
    with np.load(options.images) as file:
        images = {split: file[f"{split}_images"][..., None] for split in ("train", "val", "test")}
        labels = {split: keras.utils.to_categorical(file[f"{split}_labels"], 10) for split in images}
    searched = Searched(images["train"].shape[1], len(images["train"]), options.epochs)
    tuner = keras_tuner.RandomSearch(
        searched,
        keras_tuner.Objective("val_accuracy", "max"),
        max_trials=options.trials,
        seed=options.seed,
        directory="keras_tuner",
        overwrite=True,
    )
    given = {"epochs": options.epochs, "validation_data": (images["val"], labels["val"]), "verbose": 0}
    keras.utils.set_random_seed(0)
    tuner.search(images["train"], labels["train"], **given)
    seconds = time.monotonic() - began
    best = tuner.get_best_hyperparameters()[0]
    new, test = [], []
    for seed in range(1, options.new_seeds + 1):
        keras.utils.set_random_seed(seed)
        keep = keras.callbacks.ModelCheckpoint(
            "best.weights.h5", "val_accuracy", save_best_only=True, save_weights_only=True
        )
        net = searched.build(best)
        history = searched.fit(best, net, images["train"], labels["train"], callbacks=[keep], **given)
        net.load_weights("best.weights.h5")
        new.append(max(history.history["val_accuracy"]))
        test.append(net.evaluate(images["test"], labels["test"], batch_size=256, verbose=0)[1])
    (trial,) = tuner.oracle.get_best_trials(1)
    found = {
        "seconds": seconds,
        "values": best.values,
        "best": trial.score,
        "new": new,
        "test": test,
        "versions": {name: importlib.metadata.version(name) for name in ("keras", "keras-tuner", "tensorflow-cpu")},
    }
    options.output.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
