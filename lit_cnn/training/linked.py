"""What a classifier takes from its data, whether it fits them, and the record of both in a checkpoint without a run."""

import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import yaml

from lit_cnn import __version__
from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_names import all_as_text
from lit_cnn.core.randomness import SCHEME_VERSION
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.linked import LINKED_FROM_DATA
from lit_cnn.training.feature_cache import FeatureCache
from lit_cnn.training.optimization import epochs_of_cycle
from lit_cnn.training.weights import expected_images

_IN_EVERY_FORWARD = tuple(name for name in LINKED_FROM_DATA if name != "class_counts")


def linked_options(data: ImageDataModule, arch: str, weights: str | None) -> dict[str, Any]:
    """Returns the options of a classifier that belong to the images; these become what its weights expect.

    Args:
        data: The images; none of them need have been read.
        arch: Name of the architecture.
        weights: What it starts from; None is nothing.
    """
    data.expect_images(expected_images(arch, weights) if weights is not None else data.options["weights_expect"])
    return {name: getattr(data, name) for name in LINKED_FROM_DATA} | {"seed": data.seed}


def check_setup(hparams: Any, class_names: list[str], trainer: pl.Trainer) -> None:
    """Refuses a trainer that cannot train a classifier, and images that are not those it was made for.

    Args:
        hparams: The classifier's.
        class_names: Likewise, in label order.
        trainer: Lightning's, with its data module.

    Raises:
        UsageError: If several devices are to unfreeze (what they share is settled before the first epoch) or would
            get their images from Lightning's own sampler; if L-BFGS has no cached features, or cycles do not end with
            an epoch; or if the data differ from what the classifier was made for.
    """
    if hparams["transfer"] == "gradual" and trainer.world_size > 1:
        raise UsageError("transfer", "gradual", "trains on one device", "give `devices=1`, or full")
    data = getattr(trainer, "datamodule", None)
    if trainer.state.fn == "fit":
        epochs_of_cycle(hparams, trainer)
        caches = any(isinstance(each, FeatureCache) for each in trainer.callbacks)  # type: ignore[attr-defined]
        if hparams["head_solver"] == "lbfgs" and not (caches and isinstance(data, ImageDataModule)):
            reason = "needs the cached features of an ImageDataModule's images"
            raise UsageError("head_solver", "lbfgs", reason, "give the trainer lit_cnn.callbacks(), or take sgd")
    if not isinstance(data, ImageDataModule):
        return
    if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
        reason = "Lightning would share out the images anew, and ImageDataModule does so itself"
        raise UsageError("use_distributed_sampler", "True", reason, "give `use_distributed_sampler=False`")
    check_data_of(hparams, class_names, data)


def check_data_of(hparams: Mapping[str, Any], class_names: list[str], data: ImageDataModule) -> None:
    """Refuses images that are not those a classifier was made for.

    Args:
        hparams: The classifier's.
        class_names: Likewise, in label order.
        data: The images.

    Raises:
        UsageError: Naming what differs.
    """
    own = {**hparams, "class_names": class_names}
    other = [name for name in _IN_EVERY_FORWARD if _as_list(own[name]) != getattr(data, name)]
    if other:
        first, *more = other
        remedy = "build the classifier with LitClassifier.for_data(data, ...)"
        raise UsageError(first, str(own[first]), f"the data has {getattr(data, first)}{_and_others(more)}", remedy)


def record_of(hparams: Mapping[str, Any], class_names: list[str], trainer: pl.Trainer) -> dict[str, Any]:
    """Returns the record of a fit that is no tracked run, for its checkpoints, in plain values.

    With an `ImageDataModule` it has the configuration, by which `lit-cnn test` finds the same images again.

    Args:
        hparams: The classifier's.
        class_names: Likewise, in label order.
        trainer: Lightning's, with its data module.
    """
    record = made_by(class_names)
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, ImageDataModule):
        return record
    text = yaml.safe_dump(plain_config(hparams, data), sort_keys=False)
    return {**record, "config": text, "digests": data.digests}


def made_by(class_names: list[str]) -> dict[str, Any]:
    """Returns what every checkpoint says: the classes in label order, and what its draws depend on."""
    return {
        "class_names": class_names,
        "randomness_scheme": SCHEME_VERSION,
        "albumentations": importlib.metadata.version("albumentations"),
        "lit_cnn": __version__,
    }


def own_options(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the hyperparameters of a classifier that do not come from its data."""
    return {name: value for name, value in hparams.items() if name not in (*LINKED_FROM_DATA, "seed")}


def plain_config(hparams: Mapping[str, Any], data: ImageDataModule) -> dict[str, Any]:
    """Returns seed, model and data as the command line would have been given them, in plain values."""
    config: dict[str, Any] = {
        "seed_everything": data.seed,
        "model": own_options(hparams),
        "data": {**data.options, "weights_expect": data.weights_expect or None},
    }
    del config["data"]["seed"]
    # As JSON first: a path or a tuple becomes what YAML can hold.
    plain: dict[str, Any] = all_as_text(json.loads(json.dumps(config, default=str)))
    return plain


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _and_others(names: list[str]) -> str:
    return f"; {', '.join(names)} differ too" if len(names) > 1 else f"; {names[0]} differs too" if names else ""
