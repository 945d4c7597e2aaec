"""`lit-cnn export`: a tracked run, or the ensemble of several, as a folder that leaves.

The network that is exported takes `(N, C, S, S)` uint8 images, gray or RGB, as validation cuts them, and gives class
probabilities; normalisation, mirror image, the mean of the members and the temperature are inside its graph. Its folder
gets its name only after it has agreed with the predictions that are stored for its members (`check_parity`).
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import replace_folder_atomically
from lit_cnn.data.decoding import MAX_PIXELS
from lit_cnn.evaluation.predict import LOADING, Loading, Member
from lit_cnn.exports.formats import OF_NETWORK, PACKAGES, load_folder, write_export
from lit_cnn.exports.network import CombinedNet
from lit_cnn.exports.parity import check_parity, stored_probabilities
from lit_cnn.exports.recipe import Recipe, find_recipe, load_members
from lit_cnn.portable import CARD, ModelCard, needed_package
from lit_cnn.tracking import registry, resolve_store
from lit_cnn.tracking.run import Run

FORMATS = ("pyfunc", "onnx", "openvino", "torch")
"""What `--format` may be; `pyfunc` is MLflow's, around an export of the format `onnx`."""

_VIEWS = (1, 2)


def export(
    runs: Run | str | Sequence[Run | str],
    output: Path | str,
    format: str,
    *,
    views: int = 1,
    overwrite: bool = False,
    register: str | None = None,
    alias: str | None = None,
    loading: Loading = LOADING,
    tracking_uri: str | None = None,
) -> ModelCard:
    """Exports runs' best checkpoints as one model that needs no more of lit_cnn.

    Args:
        runs: One training run, several for the mean of their probabilities, or one of `ensemble`; or their ids. A run
            of folds is the mean of its networks.
        output: The folder to write.
        format: One of `FORMATS`.
        views: 1, or 2 with the mirror image.
        overwrite: Whether an export at `output` is replaced.
        register: The name under which a `pyfunc` becomes a version in MLflow's registry.
        alias: What that version is called.
        loading: How the test images are read, and go through the network to compare predictions.
        tracking_uri: The MLflow store; see `resolve_store`.

    Returns:
        What the export says of itself.

    Raises:
        UsageError: If the runs, the images or a package are not there, or the model does not agree with the stored
            predictions; nothing is written then.

    Example:
        >>> card = lit_cnn.export(run, "model", "torch")
        >>> lit_cnn.load("model").class_names == card.class_names
        True
    """
    output = Path(os.path.abspath(output))
    _check_options(output, format, views, overwrite, register, alias)
    store = resolve_store(tracking_uri)
    recipe = find_recipe(store, [runs] if isinstance(runs, Run | str) else runs, views)
    members = load_members(store, recipe, loading.root)
    expected = stored_probabilities(recipe, members, store.predictions_dir, loading)
    card = _card(recipe, members)
    net = CombinedNet([member.model.cpu() for member in members], card).eval()
    with tempfile.TemporaryDirectory() as folder:
        inner = Path(folder, "export")
        inner.mkdir()
        card = write_export(inner, net, card, "onnx" if format == "pyfunc" else format)
        card = replace(card, parity=check_parity(load_folder(inner), members[0], expected, loading))
        (inner / CARD).write_text(card.to_json(), encoding="utf-8")
        _write_folder(output, inner, card, format, overwrite)
    if register is None:
        return card
    tags = {"kind": "export", "members": " ".join(run.run_id for run in recipe.runs)}
    version = registry.register(store, output, register, alias, recipe.runs[0].experiment_name, tags)
    return replace(
        card, registered=(f"models:/{register}/{version}", *([f"models:/{register}@{alias}"] if alias else []))
    )


def _write_folder(output: Path, inner: Path, card: ModelCard, format: str, overwrite: bool) -> None:
    try:
        with replace_folder_atomically(output, overwrite) as folder:
            if format == "pyfunc":
                registry.save_pyfunc(folder, inner, card.image_size)
            else:
                for file in inner.iterdir():
                    (folder / file.name).write_bytes(file.read_bytes())
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise UsageError("output", output, reason, "give another folder") from error


def _card(recipe: Recipe, members: Sequence[Member]) -> ModelCard:
    first = members[0].record
    max_pixels = max(member.record.data.get("max_pixels", MAX_PIXELS) for member in members)
    described = [
        {
            "run_id": run.run_id,
            "name": run.name,
            "weight": weight,
            "weights_sha256": member.record.weights_digest,
            **{name: member.model.hparams[name] for name in OF_NETWORK},
        }
        for run, weight, member in zip(recipe.runs, recipe.weights, members, strict=True)
    ]
    return ModelCard(
        format="",
        class_names=first.class_names,
        image_size=first.preprocessing["image_size"],
        in_channels=first.preprocessing["in_channels"],
        interpolation=first.preprocessing["interpolation"],
        views=recipe.views,
        temperature=recipe.temperature,
        combine=recipe.rule,
        members=described,
        versions={},
        crop_pct=first.preprocessing["crop_pct"],
        pixel_range=first.preprocessing.get("pixel_range"),
        background=first.preprocessing.get("background"),
        max_pixels=max_pixels if max_pixels != MAX_PIXELS else None,
    )


def _check_options(
    output: Path, format: str, views: int, overwrite: bool, register: str | None, alias: str | None
) -> None:
    if format not in FORMATS:
        raise UsageError("format", format, f"give one of {', '.join(FORMATS)}")
    if views not in _VIEWS:
        raise UsageError("views", views, "an export has 1 view, or 2 with the mirror image")
    for package in PACKAGES["onnx" if format == "pyfunc" else format]:
        needed_package(package, "format", format)
    if register is not None and format != "pyfunc":
        raise UsageError("register", register, "MLflow's registry takes `format=pyfunc`")
    if alias is not None and register is None:
        raise UsageError("alias", alias, "is for a version in the registry", "give `register=NAME` too")
    if register is not None:
        registry.check_names(register, alias)
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists() and not overwrite:
        raise UsageError("output", output, "is there already", "give another folder, or `overwrite=True`")
    if output.exists() and not any((output / name).is_file() for name in (CARD, "MLmodel")):
        raise UsageError("output", output, "is no export, so it stays as it is", "give another folder")
