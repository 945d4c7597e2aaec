"""What a run says of itself: its tags and inputs in MLflow, and its record in every checkpoint."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_cnn import __version__
from lit_cnn.core.credentials import recordable
from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import write_text_atomically
from lit_cnn.core.intervals import wilson_interval
from lit_cnn.core.labels import label_of
from lit_cnn.core.randomness import SCHEME_VERSION
from lit_cnn.data.audit import Report
from lit_cnn.data.contact_sheet import contact_sheet
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.preview import preview, write_png
from lit_cnn.models import resolve_arch
from lit_cnn.tracking.logger import JournalLogger
from lit_cnn.training.classifier import LitClassifier

_LONGEST_CLASS_NAMES = 4000  # characters; MLflow takes 8,000 bytes


def run_name(model: LitClassifier, datamodule: ImageDataModule, recipe: str | None) -> str:
    """Returns `{arch}_{transfer}_{dataset}[_{recipe}]`."""
    arch = resolve_arch(model.hparams["arch"]).split("/", 1)[1]
    parts = [arch, transfer_of(model), datamodule.image_set.name, *([recipe] if recipe else [])]
    return "_".join(parts)


def transfer_of(model: LitClassifier) -> str:
    """Returns the transfer regime."""
    return model.hparams["transfer"]


def resolved(params: Mapping[str, Any], model: LitClassifier) -> dict[str, Any]:
    """Returns a run's params with the regime that `auto` has become, for its label."""
    return {**params, "model.transfer": transfer_of(model)}


def run_tags(
    model: LitClassifier, datamodule: ImageDataModule, digest: str, params: Mapping[str, Any]
) -> dict[str, str]:
    """Returns a training run's tags.

    Args:
        model: What is trained.
        datamodule: On what.
        digest: Digest of the configuration.
        params: Of the run, as it records them.
    """
    digests, fold = datamodule.digests, datamodule.options["fold"]
    commit, dirty = git_state()
    return {
        **({} if fold is None else {"fold": str(fold)}),
        "kind": "fit",
        "label": label_of(resolved(params, model)),
        "arch": model.hparams["arch"],
        "transfer": transfer_of(model),
        "data": datamodule.image_set.name,
        "seed": str(model.hparams["seed"]),
        "image_size": str(model.hparams["image_size"]),
        "config_digest": digest,
        "data_digest": digests["data"],
        "split_digest": digests["split"],
        "val_split_digest": digests["val"],
        "test_split_digest": digests["test"],
        "class_names": class_names_tag(datamodule.class_names),
        "parameters": str(num_parameters(model)),
        "git_commit": commit,
        "git_dirty": dirty,
        "lit_cnn_version": __version__,
    }


def interval_tags(metrics: Mapping[str, float], num_images: Mapping[str, int]) -> dict[str, str]:
    """Returns `val_interval` and `test_interval`: the Wilson intervals of a run's accuracies, as text for a table.

    Args:
        metrics: `best/val/acc` and `test/acc`, fractions in [0, 1], are looked for.
        num_images: Split -> how many images its accuracy is over; one that is not there has no interval.
    """
    tags = {}
    for split, metric in (("val", "best/val/acc"), ("test", "test/acc")):
        num = num_images.get(split, 0)
        if num and metric in metrics:
            low, high = wilson_interval(round(metrics[metric] * num), num)
            tags[f"{split}_interval"] = f"[{low:.3f}, {high:.3f}] of {num:,}"
    return tags


def images_in_full(trainer: Any, data: ImageDataModule) -> dict[str, int]:
    """Returns how many images val and test have; leaves out a split of which Lightning was told to take a part."""
    limits = {"val": trainer.limit_val_batches, "test": trainer.limit_test_batches}
    whole = [split for split, limit in limits.items() if isinstance(limit, float) and limit == 1]  # 1 is one batch
    return {split: len(getattr(data.splits, split)) for split in whole if not trainer.overfit_batches}


def class_names_tag(class_names: Sequence[str]) -> str:
    """Returns the names in label order as JSON; cut, with the whole's SHA-256, where MLflow would take no more.

    Members of an ensemble are compared by it, so it has to differ where the names or their order do.
    """
    text = json.dumps(list(class_names), ensure_ascii=False)
    if len(text) <= _LONGEST_CLASS_NAMES:
        return text
    return f"{text[:_LONGEST_CLASS_NAMES]}… sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def log_inputs(
    logger: JournalLogger, model: LitClassifier, datamodule: ImageDataModule, config_text: str, splits_folder: Path
) -> None:
    """Logs what a run starts from: configuration, split, data set, number of parameters.

    Args:
        logger: The run's, begun.
        model: What is trained.
        datamodule: On what.
        config_text: The resolved configuration as YAML.
        splits_folder: Where split manifests are kept, one file per split, shared by all runs.
    """
    logger.log_text(config_text, "config.yaml")
    split_file = splits_folder / f"{datamodule.digests['split'][:16]}.csv"
    if not split_file.exists():
        write_text_atomically(split_file, datamodule.manifest)
    logger.log_artifact(split_file, "data")
    images, splits = datamodule.image_set, datamodule.splits
    logger.log_dataset(
        name=images.name,
        digest=datamodule.digests["data"],
        context="training",
        source=images.source,
        profile=json.dumps({"train": len(splits.train), "val": len(splits.val), "test": len(splits.test)}),
    )
    logger.log_metrics({"model/parameters": num_parameters(model)}, step=0)
    if datamodule.has_measured_pixels:
        logger.log_text(json.dumps(asdict(datamodule.pixel_statistics), indent=2), "data/pixel_statistics.json")


def log_check(logger: JournalLogger, datamodule: ImageDataModule, report: Report | None) -> None:
    """Logs what was found in the images, as text and as a picture; which are left out, and why.

    Args:
        logger: The run's, begun.
        datamodule: On what.
        report: What was found; None if nobody looked.
    """
    if datamodule.on_bad_image == "skip":
        logger.log_metrics({"data/skipped": len(datamodule.skipped)}, step=0)
        logger.log_text(json.dumps(datamodule.skipped, indent=2, ensure_ascii=False), "data/skipped.json")
    if report is None:
        return
    logger.log_text(json.dumps(report.to_dict(), indent=2, ensure_ascii=False), "data/check.json")
    if (picture := contact_sheet(report)) is not None:
        file = logger.run_folder / "check.png"
        write_png(file, picture)
        logger.log_artifact(file, "data")


def log_preview(logger: JournalLogger, datamodule: ImageDataModule) -> None:
    """Logs the picture of what augmentation does, as `preview.png`."""
    file = logger.run_folder / "preview.png"
    write_png(file, preview(datamodule))
    logger.log_artifact(file)


def recorded_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration as a run records it: no password, and not where it is tracked, which is no part of it.

    Args:
        config: The resolved configuration: sections of plain values.
    """
    # By name for loggers and callbacks only: a network's `token_mixer` is no secret, and builds it again.
    recorded = {name: recordable(value, by_name=name == "trainer") for name, value in config.items()}
    return {**recorded, "tracking_uri": None}


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested sections to `section.option`; what is None is left out."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        elif value is not None:
            flat[f"{prefix}{name}"] = value
    return flat


def git_state() -> tuple[str, str]:
    """Returns the commit of the working directory's repository and whether it has changes; `none` outside of one."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "none", "none"
    return commit, str(bool(changes.strip())).lower()


def check_classes(checkpoint: dict[str, Any], datamodule: ImageDataModule, path: Any) -> None:
    """Refuses a checkpoint of other classes than the data's.

    Raises:
        UsageError: If the number, the names or the order of the classes differ.
    """
    saved = checkpoint.get("lit_cnn", {}).get("class_names") or checkpoint["hyper_parameters"]["class_names"]
    if saved != datamodule.class_names:
        raise UsageError(
            "ckpt_path",
            path,
            f"was trained on {len(saved)} classes ({', '.join(saved[:5])}, …), the data has "
            f"{datamodule.num_classes} ({', '.join(datamodule.class_names[:5])}, …)",
            "give a checkpoint of these classes",
        )


def check_randomness(checkpoint: dict[str, Any]) -> None:
    """Says so, if a checkpoint's run drew by another scheme: what follows is not what that run would have become."""
    saved = checkpoint.get("lit_cnn", {}).get("randomness_scheme", SCHEME_VERSION)
    if saved != SCHEME_VERSION:
        print(
            f"lit-cnn: warning: the checkpoint's run drew by scheme {saved} of the randomness, this release by "
            f"{SCHEME_VERSION}: it goes on with other augmentations than that release would have drawn",
            file=sys.stderr,
        )


def num_parameters(model: LitClassifier) -> int:
    """Returns the number of trained and frozen parameters, buffers left out."""
    return sum(parameter.numel() for parameter in model.parameters())
