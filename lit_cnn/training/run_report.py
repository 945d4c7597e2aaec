"""The report of a run: a page that needs no other file, and the pictures and tables that are on it."""

import copy
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from lit_cnn.core.csv_text import csv_text
from lit_cnn.core.files import write_text_atomically
from lit_cnn.core.fonts import without_middle
from lit_cnn.core.labels import augmentation_name, label_of
from lit_cnn.core.machine import machine_name
from lit_cnn.core.run_params import decides
from lit_cnn.core.words import duration
from lit_cnn.data.class_table import count_classes
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.image_set import EncodedImages
from lit_cnn.data.preview import preview, write_png
from lit_cnn.data.splits import SPLIT_NAMES
from lit_cnn.models.describe import measure
from lit_cnn.reports.curves import plot_curves
from lit_cnn.reports.mistakes import MOST_CLASSES, write_mistakes
from lit_cnn.reports.page import answer, details, grid, heading, page, paragraph, picture
from lit_cnn.reports.predictions import Predictions
from lit_cnn.reports.wording import rounded
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.history import History
from lit_cnn.training.record import flatten, num_parameters, resolved
from lit_cnn.training.run_options import TRAINER_DEFAULTS, RunOptions
from lit_cnn.training.setup import Setup

FOLDER = "report"
"""Where the report's files are, in the run's folder and among its artifacts."""

MISSING = "Missing: "
"""What the line on a page begins with that stands in place of a section."""

_SHOWN_AT = 224  # pixels; a large JPEG is decoded at a part of its size, but not smaller than that
_LARGE = 128  # pixels; of larger images fewer draws are shown
_LONGEST_VALUE = 200  # letters
_FEWEST = 20  # classes in the table of images, where there are very many
_MAIN = (
    *("model.arch", "model.transfer", "model.weights", "data.dataset", "data.image_size", "data.augment"),
    *("data.batch_size", "model.optimizer", "model.lr", "model.schedule", "trainer.max_epochs", "trainer.precision"),
    "seed_everything",
)
"""Options that are shown whether or not they have their defaults."""

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""As `plot_curves` takes them."""

Part = tuple[list[Path], str]
"""Files that were written, and a section of the page in HTML."""


def write_run_report(
    setup: Setup,
    trainer: pl.Trainer,
    said: Sequence[str],
    predictions: Predictions | None,
    history: History,
    best_epoch: int | None,
    folder: Path,
) -> tuple[list[Path], list[str]]:
    """Writes the report of a run that has come to its end.

    Args:
        setup: What the run is made of.
        trainer: Of the run.
        said: The sentences that the page opens on.
        predictions: Of the test images; None where nothing was tested.
        history: How the run went.
        best_epoch: Number of the best epoch, from 1; None where there is none.
        folder: Where the files go; made if it is not there.

    Returns:
        The files, `report.html` last, and what could not be made, with the reason.

    Raises:
        OSError: If the page cannot be written.
    """
    model, data = setup.model, setup.data
    folder.mkdir(parents=True, exist_ok=True)
    sections: list[tuple[str, Callable[[], Part]]] = [
        ("the curves", lambda: curves(history.curves, best_epoch, folder))
    ]
    if predictions is not None:
        shown = replace(predictions, image_set=replace(predictions.image_set, images=Reduced(data.image_set.images)))
        sections.append(("the mistakes", lambda: write_mistakes(shown, folder)))
    sections += [
        ("the images trained on", lambda: images(data, folder)),
        ("the augmentation", lambda: _augmentation(data, folder)),
        ("the cost", lambda: _cost(model, trainer, history)),
        ("the configuration", lambda: configuration(chosen_options(setup.config, type(model)))),
    ]
    first = [answer(" ".join(said)), paragraph(label_of(resolved(flatten(setup.config), model)))]
    return write_page(setup.name, first, sections, folder)


def write_page(
    title: str, first: Sequence[str], sections: Sequence[tuple[str, Callable[[], Part]]], folder: Path
) -> tuple[list[Path], list[str]]:
    """Writes a page of sections, of which one that cannot be made is named there.

    Args:
        title: Of the page.
        first: What it opens on, in HTML.
        sections: What each shows, and what makes it.
        folder: Where the files go.

    Returns:
        As `write_run_report`.
    """
    files: list[Path] = []
    parts, missing = list(first), []
    for what, make in sections:
        try:
            written, part = make()
        except Exception as error:  # a report is no reason for a run to fail
            reason = " ".join(str(error).split()) or type(error).__name__
            missing.append(f"{what} ({reason})")
            parts.append(paragraph(f"{MISSING}{missing[-1]}"))
        else:
            files += written
            parts.append(part)
    file = folder / "report.html"
    write_text_atomically(file, page(title, *parts))
    return [*files, file], missing


class Reduced(Sequence[np.ndarray]):
    """Images to be shown small: large JPEGs are decoded at a part of their size, which takes a part of the time."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(self._images, EncodedImages):
            return self._images.decode(int(index), _reduction)
        return self._images[index]


def _reduction(height: int, width: int) -> int:
    return next((factor for factor in (8, 4, 2) if min(height, width) // factor >= _SHOWN_AT), 1)


def curves(of_run: Curves, best_epoch: int | None, folder: Path) -> Part:
    """Returns a section with the curves of a run; nothing where it has none."""
    if not any(epochs for epochs, _ in of_run.values()):
        return [], ""
    file = folder / "curves.png"
    plot_curves(of_run, best_epoch, file)
    return [file], "\n".join([heading("Training"), picture(file, "losses and accuracies by epoch")])


def images(data: ImageDataModule, folder: Path) -> Part:
    """Returns a section with how many images of each class there are."""
    counts = count_classes(data.image_set, {split: data.splits[split] for split in SPLIT_NAMES})
    files, said, shown = [], "", list(counts)
    if len(counts) > MOST_CLASSES:
        shown = sorted(counts, key=lambda name: counts[name]["train"])[:_FEWEST]
        file = folder / "images.csv"
        rows = [(name, *(of_class[split] for split in SPLIT_NAMES)) for name, of_class in counts.items()]
        write_text_atomically(file, csv_text([("class", *SPLIT_NAMES), *rows]))
        files = [file]
        said = paragraph(
            f"The {_FEWEST} of {len(counts):,} classes with the fewest training images; {file.name} has all of them."
        )
    cells = [(name, *(f"{counts[name][split]:,}" for split in SPLIT_NAMES)) for name in shown]
    whole = ("all", *(f"{len(data.splits[split]):,}" for split in SPLIT_NAMES))
    return files, "\n".join(filter(None, [heading("Images"), said, grid(("Class", *SPLIT_NAMES), [*cells, whole])]))


def _augmentation(data: ImageDataModule, folder: Path) -> Part:
    file = folder / "examples.png"
    draws = 1 if not data.train_transform.steps else 3 if data.image_size > _LARGE else 6
    write_png(file, preview(data, num_images=4, num_draws=draws))
    return [file], "\n".join(
        [paragraph("Training images as validation would see them, then as training does:"), picture(file, "examples")]
    )


def _cost(model: LitClassifier, trainer: pl.Trainer, history: History) -> Part:
    total = num_parameters(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    device = trainer.strategy.root_device
    several = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    rows = [
        ("Parameters", f"{total:,}" if trained == total else f"{total:,}, {trained:,} of them trained"),
        ("Multiply-adds for one image", rounded(_multiply_adds(model))),
        ("Training", duration(history.seconds)),
        *([("An epoch", duration(history.epoch_seconds))] if history.epoch_seconds is not None else []),
        ("Device", f"{several}{machine_name(device)}, {trainer.precision}"),
    ]
    if device.type == "cuda":
        rows.append(("GPU memory", f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB at most"))
    return [], "\n".join([heading("Cost"), grid(("", ""), rows)])


def _multiply_adds(model: LitClassifier) -> int:
    """Counts on a copy without values, which computes nothing and takes no room."""
    net, size = model.net, model.hparams["image_size"]
    memo: dict[int, Any] = {
        id(each): torch.nn.Parameter(each.to("meta"), each.requires_grad) for each in net.parameters()
    }
    memo |= {id(each): each.to("meta") for each in net.buffers()}
    images = torch.zeros(1, model.hparams["in_channels"], size, size, device="meta")
    copied = copy.deepcopy(net, memo).eval().float()
    return sum(layer.multiply_adds for layer in measure(copied, images))


def configuration(options: Mapping[str, str]) -> Part:
    """Returns a section with options of a run, as `chosen_options` gives them."""
    rows = list(options.items())
    whole = paragraph("All other options have their defaults; all of them are in the run's config.yaml.")
    return [], details("Configuration", grid(("Option", "Value"), rows), whole)


def chosen_options(config: Mapping[str, Any], model_class: type[LitClassifier]) -> dict[str, str]:
    """Returns the options that say most of a run, and those that have not their defaults, as texts.

    Args:
        config: As a run records it.
        model_class: The class of its model.
    """
    defaults = {
        "model": _defaults(model_class),
        "data": _defaults(ImageDataModule),
        "trainer": {**_defaults(pl.Trainer), **TRAINER_DEFAULTS},
    }
    flat = {name: value for name, value in config.items() if name not in defaults}
    usual = {**asdict(RunOptions()), "seed_everything": 0}
    for section, of_section in defaults.items():
        flat |= {f"{section}.{name}": value for name, value in config[section].items()}
        usual |= {f"{section}.{name}": value for name, value in of_section.items()}
    unusual = [name for name, value in flat.items() if value not in (usual.get(name), None) and decides(name)]
    shown = dict.fromkeys([*(name for name in _MAIN if flat.get(name) is not None), *unusual])
    return {name: _value(name, flat[name]) for name in shown}


def _defaults(made: type) -> dict[str, Any]:
    parameters = inspect.signature(made.__init__).parameters  # type: ignore[misc]
    return {name: each.default for name, each in parameters.items() if each.default is not inspect.Parameter.empty}


def _value(name: str, value: Any) -> str:
    if name == "data.augment":
        return augmentation_name(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return without_middle(text, _LONGEST_VALUE)
