import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_cnn.core.labels import DEFAULTS, augmentation_name, label_of, labels_of, shared_label
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.distillation import Distillation
from lit_cnn.training.run_options import TRAINER_DEFAULTS, RunOptions

# As the store has them: texts, and all options of the version that trained.
LITE0 = {
    "model.arch": "timm/tf_efficientnet_lite0",
    "model.transfer": "head_only",
    "model.weights": "offline",
    "model.train_stages": "1",
    "model.lr": "0.003",
    "model.weight_decay": "0.01",
    "model.warmup_fraction": "0.1",
    "model.mixup": "0.0",
    "data.dataset": "image_folder",
    "data.root": "/photos",
    "data.weights_expect.image_size": "224",
    "data.weights_expect.mean": "[0.5, 0.5, 0.5]",
    "data.batch_size": "32",
    "data.train_crop": "random_resized",
    "data.augment": "[{'class_path': 'albumentations.HorizontalFlip'}]",
    "trainer.max_epochs": "20",
    "trainer.accelerator": "auto",
    "seed_everything": "2",
}
# A run of 0.1: fewer options, and no regime, which came later.
LENET_OF_0_1 = {
    "model.arch": "lenet5",
    "model.lr": "0.004",
    "data.dataset": "digits",
    "data.image_size": "32",
    "data.batch_size": "64",
    "data.augment": "[{'class_path': 'albumentations.Affine', 'init_args': {'rotate': [-10, 10], 'scale': [0.9, 1.1], "
    "'translate_percent': [-0.08, 0.08], 'p': 1.0}}]",
    "seed_everything": "0",
}
NO_AUGMENT = {"data.augment": "[]", "data.train_crop": "center"}


@pytest.mark.parametrize(
    ("params", "label"),
    [
        (LITE0, "tf_efficientnet_lite0 · head_only · 224 px · seed 2"),
        (LITE0 | {"model.lr": 0.003, "seed_everything": 2}, "tf_efficientnet_lite0 · head_only · 224 px · seed 2"),
        (LITE0 | {"data.image_size": "128"}, "tf_efficientnet_lite0 · head_only · 128 px · seed 2"),
        (LITE0 | {"model.lr": "0.1"}, "tf_efficientnet_lite0 · head_only · 224 px · lr 0.1 · seed 2"),
        (
            LITE0 | {"model.transfer": "last_stages", "model.train_stages": "3", "model.head_lr_factor": "10.0"},
            "tf_efficientnet_lite0 · last_stages · 224 px · 3 stages · lr 0.003 · seed 2",
        ),
        (LITE0 | NO_AUGMENT, "tf_efficientnet_lite0 · head_only · 224 px · augment none · seed 2"),
        (LENET_OF_0_1, "lenet5 · scratch · 32 px · seed 0"),
        (LENET_OF_0_1 | {"model.arch": "lit/lenet5"}, "lenet5 · scratch · 32 px · seed 0"),
        (LENET_OF_0_1 | {"recipe": "007", "ema_decay": "0.99"}, "lenet5 · scratch · 32 px · 007 · ema 0.99 · seed 0"),
        (LENET_OF_0_1 | {"data.limit_train": "2000"}, "lenet5 · scratch · 32 px · 2,000 training images · seed 0"),
        (
            LENET_OF_0_1
            | {"model.arch_options.width": "0.5", "model.mixup": "0.2", "model.lr": "1", "trainer.max_epochs": "3"}
            | {"data.crop_scale": "[0.08, 1.0]", "data.batch_size": "8"},
            "lenet5 · scratch · 32 px · mixup 0.2 · lr 1 · batch 8 · 3 epochs · … · seed 0",
        ),
        ({}, ""),
    ],
)
def test_a_run_by_itself_has_a_short_label(params: dict[str, Any], label: str) -> None:
    assert label_of(params) == label


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ([{}, {"seed_everything": "3"}], ["seed 2", "seed 3"]),
        ([{}, {"seed_everything": "0"}], ["seed 2", "seed 0"]),
        (
            # What comes with the regime is not said, nor where the images were or on how many processes.
            [{}, {"model.transfer": "full", "model.lr": "0.0003", "data.root": "/mnt", "data.num_workers": "9"}],
            ["head_only", "full"],
        ),
        (
            [{}, {"model.transfer": "full", "model.lr": "0.1", "data.image_size": "128", "seed_everything": "0"}],
            ["head_only · 224 px · lr 0.003 · seed 2", "full · 128 px · lr 0.1 · seed 0"],
        ),
        ([{"model.lr": "0.003"}, {"model.lr": "0.03"}], ["lr 0.003", "lr 0.03"]),
        ([{}, {"recipe": "tuned", "model.lr": "0.03", "model.schedule": "constant"}], ["no recipe", "tuned"]),
        (
            [{"recipe": "a", "model.lr": "1"}, {"recipe": "a", "model.lr": "2"}, {"recipe": "b"}],
            ["a · lr 1", "a · lr 2", "b · lr 0.003"],
        ),
        ([{}, NO_AUGMENT], ["augment standard", "augment none"]),
        ([{}, {"data.limit_train": "50"}], ["all training images", "50 training images"]),
        ([{}, {"ema_decay": "0.999"}], ["no ema decay", "ema 0.999"]),
        ([{}, {"ema_decay": "0.999"}, {"seed_everything": "3"}], ["seed 2", "ema 0.999 · seed 2", "seed 3"]),
        ([{}, {"model.weights": "runs:/0123456789abcdef"}], ["weights offline", "weights runs:/01234567"]),
        ([{}, {"trainer.accelerator": "cpu"}], ["accelerator auto", "accelerator cpu"]),
        ([{}, {}], ["tf_efficientnet_lite0 · head_only · 224 px · seed 2"] * 2),
        ([{}], ["tf_efficientnet_lite0 · head_only · 224 px · seed 2"]),
        # A later version records more: that is no difference.
        ([{}, {"data.outside_root": "False", "seed_everything": "1"}], ["seed 2", "seed 1"]),
        ([], []),
    ],
)
def test_labels_say_what_differs_and_nothing_else(changes: list[dict[str, Any]], labels: list[str]) -> None:
    assert labels_of([LITE0 | change for change in changes]) == labels


def test_what_runs_share_is_said_once() -> None:
    assert shared_label([LITE0, LITE0 | {"seed_everything": "3"}]) == "tf_efficientnet_lite0 · head_only · 224 px"
    assert shared_label([LITE0, LENET_OF_0_1]) == ""


def test_a_list_of_transforms_has_a_name() -> None:
    config = yaml.safe_load(Path(__file__).parents[2].joinpath("configs/augment/alexnet.yaml").read_text("utf-8"))[
        "data"
    ]["augment"]
    old = [{"class_path": "albumentations.HorizontalFlip"}, {"class_path": "lit_cnn.pca_color.PCAColor"}]
    assert augmentation_name(config) == augmentation_name(str(config)) == augmentation_name(old) == "alexnet"
    assert augmentation_name([]) == augmentation_name("[]") == "none"
    assert augmentation_name(LENET_OF_0_1["data.augment"]) == "digits"
    own = [{"class_path": "mine.Blur", "init_args": {"p": 0.5}}]
    name = augmentation_name(own)
    assert len(name) == 6 and int(name, 16) >= 0 and augmentation_name(str(own)) == name
    assert augmentation_name(f"{own}"[:20]) not in (name, "none")  # cut: still a name
    assert labels_of([LITE0 | {"data.augment": own}, LITE0 | NO_AUGMENT])[1] == "augment none"


def test_the_defaults_are_those_of_the_options() -> None:
    options = {
        "model": {**_defaults(LitClassifier), **_defaults(Distillation)},
        "data": _defaults(ImageDataModule),
        "trainer": {"max_steps": -1, "accumulate_grad_batches": 1, **TRAINER_DEFAULTS},
        "": {**_defaults(RunOptions), "seed_everything": 0},
    }
    for name, value in DEFAULTS.items():
        section, _, option = name.rpartition(".")
        assert options[section][option] == value, name
    # An option that every run records would be in every label.
    linked = {"num_classes", "in_channels", "image_size", "interpolation", "crop_pct", "seed", "feature_cache_gb"}
    recorded = {f"model.{name}" for name, value in options["model"].items() if value is not None} - {
        f"model.{name}" for name in linked
    }
    assert recorded <= DEFAULTS.keys()


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
