"""`make bench NAME=transfer_by_size`: test accuracy against the number of training images, pretrained and from scratch.

Fashion-MNIST, 10,000 test images. EfficientNet-Lite0 at 112 px with ImageNet's weights (extra offline-weights): its
head alone (features computed once, L-BFGS), its last stages, or all of it; and the best of small networks from random
weights at 28 px. Each regime chooses its settings on val, with seeds of its own. The runs that are tested have other
seeds, and with the seed change the training and validation images, the initial weights and the order. Differences are
taken seed by seed, on the same images. Hours on two cores; runs that MLflow (`mlruns/` here) has already are not
trained again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_cnn.cli.fit_config import train_missing
from lit_cnn.evaluation.arms import Arm, comparison, finished_runs, plot_by_images
from lit_cnn.evaluation.statistics import mean_std
from tests.benchmarks.common import save_result

EXPERIMENT = "transfer_by_size"
SCRATCH, HEAD, LAST, FULL = "from scratch", "head_only", "last_stages", "full"
REGIMES = (SCRATCH, HEAD, LAST, FULL)
ALL = 58_000  # about so many are left when val has its 2,000: no limit then
SEEDS = {50: range(10), 500: range(10), 5_000: range(3), ALL: range(3)}
TUNING_SEEDS = (100, 101)
# Passes over the images, and images in a batch.
EPOCHS = {50: 20, 500: 10, 5_000: 4}
BATCH_SIZES = {50: 10, 500: 32, 5_000: 32}
SCRATCH_EPOCHS = {50: 100, 500: 50, 5_000: 20, ALL: 10}
SCRATCH_BATCH_SIZES = {50: 10, 500: 50, 5_000: 128, ALL: 128}

Key = tuple[int, str]  # number of images, regime


def arm(
    size: int, regime: str, arch: str, setting: str, epochs: int, configs: Sequence[str], options: dict[str, Any]
) -> Arm:
    """Returns a configuration with the options that all have."""
    recipe = f"{size}_{setting}"
    run_name = f"{arch}_{'scratch' if regime == SCRATCH else regime}_fashion_mnist_{recipe}"
    common = {
        **({} if size == ALL else {"data.limit_train": size}),
        "data.val_fraction": 0.0333,
        "data.split_seed": "seed",
        "trainer.max_epochs": epochs,
        "trainer.check_val_every_n_epoch": epochs,  # the rates end at nothing: the last weights are taken
        "recipe": recipe,
    }
    return Arm(f"{regime}: {arch} {setting}", run_name, configs, {**options, **common})


def pretrained(size: int, regime: str, setting: str, epochs: int, options: dict[str, Any]) -> Arm:
    """Returns EfficientNet-Lite0 in a regime."""
    configs = [f"transfer/{regime}", "tf_efficientnet_lite0_fashion_mnist"]
    return arm(size, regime, "tf_efficientnet_lite0", setting, epochs, configs, options)


def candidates(size: int, regime: str) -> list[Arm]:
    """Returns what a regime chooses from at this size; none if it is not tried there."""
    if regime == HEAD:
        return [pretrained(size, HEAD, "lbfgs", 20, {"model.head_solver": "lbfgs"})]
    if regime == SCRATCH:
        epochs, options = SCRATCH_EPOCHS[size], {"data.batch_size": SCRATCH_BATCH_SIZES[size]}
        fast, fast_options = ["airbench_scratch_fashion_mnist"], {**options, "ema_decay": 0.98}
        return [
            arm(size, SCRATCH, "lenet5", "adamw", epochs, ["lenet5_scratch_fashion_mnist"], options),
            arm(size, SCRATCH, "airbench", "lr_0.3", epochs, fast, fast_options),
            arm(size, SCRATCH, "airbench", "lr_0.05", epochs, fast, {**fast_options, "model.lr": 0.05}),
        ]
    if size == ALL:
        return []
    # With a decay of 0.8 EfficientNet-Lite0's first layers have 2 % of the last one's rate.
    decays = {"": 0.8, "_decay_1": 1.0} if regime == FULL else {"": 1.0}
    return [
        pretrained(
            size,
            regime,
            f"lr_{rate}{name}",
            EPOCHS[size],
            {
                "data.augment": [{"class_path": "albumentations.HorizontalFlip"}],
                "data.batch_size": BATCH_SIZES[size],
                "model.lr": rate,
                "model.layer_decay": decay,
            },
        )
        for name, decay in decays.items()
        for rate in (0.0003, 0.001, 0.003)
    ]


def choose(sizes: Sequence[int]) -> dict[Key, Arm]:
    """Returns the configuration of each regime at each size that is best on val; trains what that takes.

    Of 5,000 images, where a run takes longest, `last_stages` and `full` are trained as 500 images chose.
    """
    chosen: dict[Key, Arm] = {}
    for size in sizes:
        for regime in REGIMES:
            tried = candidates(size, regime)
            if regime in (LAST, FULL) and size == 5_000 and (500, regime) in chosen:
                tried = [tried[candidates(500, regime).index(chosen[500, regime])]]
            if len(tried) > 1:
                train_missing(tried, EXPERIMENT, TUNING_SEEDS, {"test_after_fit": False})
                tried.sort(key=val_accuracy, reverse=True)
                for each in tried:
                    print(f"{size:6,} images  val/acc {val_accuracy(each):.4f}  {each.label}", flush=True)
            if tried:
                chosen[size, regime] = tried[0]
    return chosen


def val_accuracy(each: Arm) -> float:
    """Returns the mean over the tuning seeds."""
    runs = finished_runs(each, EXPERIMENT)
    return mean_std([runs[seed].metrics["best/val/acc"] for seed in TUNING_SEEDS]).mean


def main() -> None:
    """Trains what is missing; prints a table for each size, draws the picture, writes all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SEEDS), choices=list(SEEDS))
    parser.add_argument("--output", type=Path, default=Path("transfer_by_size.png"))
    options = parser.parse_args()
    chosen = choose(options.sizes)
    figures: dict[str, dict[Key, list[float]]] = {"test/acc": {}, "best/val/acc": {}}
    for (size, regime), each in chosen.items():
        train_missing([each], EXPERIMENT, SEEDS[size])
        runs = finished_runs(each, EXPERIMENT)
        for metric, values in figures.items():
            values[size, regime] = [runs[seed].metrics[metric] for seed in SEEDS[size]]
    for size in options.sizes:
        print(f"{size:,} images, test/acc, settings chosen on val")
        of_size = {regime: values for (of, regime), values in figures["test/acc"].items() if of == size}
        print(comparison({chosen[size, regime].label: values for regime, values in of_size.items()}))
    by_images = {
        regime: {
            size: [100 * value for value in values]
            for (size, of), values in figures["test/acc"].items()
            if of == regime
        }
        for regime in REGIMES
    }
    plot_by_images(by_images, options.output, "test accuracy, % (mean ± std over seeds)")
    named = {name: {f"{s} {r}": v for (s, r), v in values.items()} for name, values in figures.items()}
    save_result("transfer_by_size", {"seeds": {size: list(SEEDS[size]) for size in options.sizes}, **named})


if __name__ == "__main__":
    main()
