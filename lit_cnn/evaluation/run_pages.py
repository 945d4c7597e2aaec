"""Pages of runs that have ended, made anew from what is stored with them, and from their images."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from lit_cnn.core.errors import UsageError
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.splits import Split
from lit_cnn.evaluation.comparison import predictions_of
from lit_cnn.evaluation.members import networks_of
from lit_cnn.evaluation.predict import Loading, data_of, load_network, split_by_path
from lit_cnn.reports.mistakes import write_mistakes
from lit_cnn.reports.page import answer, grid, heading, paragraph
from lit_cnn.reports.predictions import confusion_matrix
from lit_cnn.reports.run_words import Facts, sentences
from lit_cnn.reports.wording import rounded
from lit_cnn.tracking import Store, queries
from lit_cnn.tracking.queries import RunInfo
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.fold_report import write_fold_report
from lit_cnn.training.fold_result import FoldResult
from lit_cnn.training.history import CURVES, by_epoch
from lit_cnn.training.run_report import Part, Reduced, chosen_options, configuration, curves, images, write_page


def write_network_page(
    store: Store, run: RunInfo, said: Sequence[str], loading: Loading, folder: Path
) -> tuple[list[Path], list[str], list[str]]:
    """Writes the page of a run of one network.

    What it predicts is read from its stored logits, or computed. Where nothing was tested, its mistakes are those on
    val: looking at test is for who decides to.

    Args:
        store: Where it is.
        run: The run.
        said: What the page opens on; where there is nothing, what is found here.
        loading: How images are read and go through the network.
        folder: Where the files go.

    Returns:
        The files, `report.html` last; what could not be made, with the reason; what the page opens on.

    Raises:
        UsageError: If its images or its checkpoint are not there.
    """
    of_run = by_epoch({name: dict(queries.metric_history(store, run, name)) for name in CURVES}, num_epochs=0)
    best_epoch = int(run.metrics["best/epoch"]) + 1 if "best/epoch" in run.metrics else None
    sections: list[Any] = [("the curves", lambda: curves(of_run, best_epoch, folder))]
    if "best/val/acc" in run.metrics:
        split: Split = "test" if "test/acc" in run.metrics else "val"
        member = load_network(store, run, [split], loading.root)
        predictions = predictions_of(store, member, run.name, split, split_by_path(member, split), loading)
        facts = _facts(run, member.data, of_run, best_epoch, confusion_matrix(predictions) if split == "test" else None)
        said = said or sentences(facts)
        shown = replace(predictions.image_set, images=Reduced(predictions.image_set.images))
        seen = replace(predictions, image_set=shown)
        sections += [
            ("the mistakes", lambda: write_mistakes(seen, folder, images=f"{split} images")),
            ("the images trained on", lambda: images(member.data, folder)),
            ("the cost", lambda: _cost(member.record.parameters, member.record.multiply_adds)),
        ]
    sections.append(("the configuration", lambda: configuration(_options_of(store, run))))
    label = run.tags.get("label", run.name)
    files, missing = write_page(run.name, [answer(" ".join(said)), paragraph(label)], sections, folder)
    return files, missing, list(said)


def write_folds_page(
    store: Store, run: RunInfo, result: FoldResult, said: Sequence[str], root: Path | str | None, folder: Path
) -> tuple[list[Path], list[str]]:
    """Writes the page of a run of folds from their stored logits.

    Args:
        store: Where it is.
        run: The run.
        result: What its folds came to.
        said: What the page opens on.
        root: Folder of the images, if it is elsewhere than in training.
        folder: Where the files go.

    Returns:
        The files, `report.html` last, and what could not be made, with the reason.

    Raises:
        UsageError: If its images are not there, or are others.
    """
    (network, *_) = networks_of(store, run)
    config = _config_of(store, network)
    data = data_of({**config["data"], "seed": config["seed_everything"]}, {"crop_pct": 1.0}, root)
    if data.digests["data"] != run.tags["data_digest"]:
        reason = f"the images in {data.image_set.source} are not those that {run.name} was trained with"
        remedy = "bring them back, or name their folder with `root`"
        raise UsageError("run", run.run_id, f"{reason} (their digest differs)", remedy)
    options = chosen_options(config, LitClassifier)
    return write_fold_report(result, said, run.name, run.tags.get("label", run.name), options, data.image_set, folder)


def _facts(run: RunInfo, data: ImageDataModule, of_run: Any, best_epoch: int | None, counts: Any) -> Facts:
    """Returns what is known of a run that did not say itself what it came to, as those of 0.1 did not."""
    monitor = run.params.get("monitor", "val/acc")
    epochs, values = of_run.get(monitor, ([], []))
    return Facts(
        class_names=data.class_names,
        counts=counts,
        train_counts=data.class_counts,
        best_epoch=best_epoch,
        num_epochs=len(epochs),
        val_share=run.metrics.get("best/val/acc", math.nan),
        num_val=len(data.splits.val),
        monitor=monitor,
        is_tied=len(values) > 0 and values.count(max(values)) > 1,
    )


def _cost(parameters: int, multiply_adds: float) -> Part:
    rows = [("Parameters", f"{parameters:,}"), ("Multiply-adds for one image", rounded(multiply_adds))]
    return [], "\n".join([heading("Cost"), grid(("", ""), rows)])


def _options_of(store: Store, run: RunInfo) -> dict[str, str]:
    return chosen_options(_config_of(store, run), LitClassifier)


def _config_of(store: Store, run: RunInfo) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(
        queries.download_artifact(store, run, "config.yaml").read_text(encoding="utf-8")
    )
    return config
