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
from lit_cnn.evaluation.predictions import Member
from lit_cnn.export.formats import OF_NETWORK, PACKAGES, load_folder, write_export
from lit_cnn.export.network import CombinedNet
from lit_cnn.export.parity import check_parity, stored_probabilities
from lit_cnn.export.recipe import Recipe, find_recipe, load_members
from lit_cnn.portable import CARD, ImageClassifier, ModelCard, export_folder, needed_package
from lit_cnn.tracking import Store, registry

FORMATS = ("pyfunc", "onnx", "openvino", "torch")
"""What `--format` may be; `pyfunc` is MLflow's, around an export of the format `onnx`."""

_VIEWS = (1, 2)


def export_runs(
    store: Store,
    run_ids: Sequence[str],
    output: Path,
    format: str,
    *,
    views: int = 1,
    overwrite: bool = False,
    root: Path | None = None,
    batch_size: int = 64,
    register: str | None = None,
    alias: str | None = None,
) -> ModelCard:
    """Exports runs' best checkpoints as one model.

    Args:
        store: Where the runs are.
        run_ids: One training run, several for the mean of their probabilities, or one of `lit-cnn ensemble`.
        output: The folder to write.
        format: One of `FORMATS`.
        views: 1, or 2 with the mirror image.
        overwrite: Whether an export at `output` gives way.
        root: Folder of the test images, if it is elsewhere than in training.
        batch_size: Images per forward pass where predictions are compared.
        register: The name under which a `pyfunc` becomes a version in MLflow's registry.
        alias: What that version is called.

    Returns:
        What the export says of itself.

    Raises:
        UsageError: If the runs, the images or a package are not there, or the model does not agree with the stored
            predictions; nothing is written then.
    """
    output = Path(os.path.abspath(output))
    _check_options(output, format, views, overwrite, batch_size, register, alias)
    recipe = find_recipe(store, run_ids, views)
    members = load_members(store, recipe, root)
    expected = stored_probabilities(recipe, members, store.predictions_dir, batch_size)
    card = _card(recipe, members)
    net = CombinedNet([member.model.cpu() for member in members], card).eval()
    with tempfile.TemporaryDirectory() as folder:
        inner = Path(folder, "export")
        inner.mkdir()
        card = write_export(inner, net, card, "onnx" if format == "pyfunc" else format)
        card = replace(card, parity=check_parity(load_folder(inner), members[0], expected, batch_size))
        (inner / CARD).write_text(card.to_json(), encoding="utf-8")
        _write_folder(output, inner, card, format, overwrite)
    if register is not None:
        tags = {"kind": "export", "members": " ".join(run.run_id for run in recipe.runs)}
        version = registry.register(store, output, register, alias, recipe.runs[0].experiment_name, tags)
        print(f"models:/{register}/{version}" + (f" models:/{register}@{alias}" if alias else ""))
    return card


def load_export(address: str, store: Store) -> ImageClassifier:
    """Loads an export to ask it about images; see `lit_cnn.portable`.

    Args:
        address: Its folder, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        store: Where the registry is.

    Raises:
        UsageError: If there is none, or it is not as it was written.
    """
    folder = registry.registered_model(store, address) if address.startswith("models:/") else Path(address)
    return load_folder(export_folder(folder))


def _write_folder(output: Path, inner: Path, card: ModelCard, format: str, overwrite: bool) -> None:
    try:
        with replace_folder_atomically(output, overwrite) as folder:
            if format == "pyfunc":
                registry.save_pyfunc(folder, inner, card.image_size)
            else:
                for file in inner.iterdir():
                    (folder / file.name).write_bytes(file.read_bytes())
    except OSError as error:
        raise UsageError(f"--output {output}: cannot be written ({error.strerror}); give another folder") from error


def _card(recipe: Recipe, members: Sequence[Member]) -> ModelCard:
    first = members[0].record
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
    )


def _check_options(
    output: Path, format: str, views: int, overwrite: bool, batch_size: int, register: str | None, alias: str | None
) -> None:
    if views not in _VIEWS:
        raise UsageError(f"--views {views}: an export has 1 view, or 2 with the mirror image")
    if batch_size < 1:
        raise UsageError(f"--batch_size {batch_size}: give a whole number of at least 1")
    for package in PACKAGES["onnx" if format == "pyfunc" else format]:
        needed_package(package, f"--format {format}")
    if register is not None and format != "pyfunc":
        raise UsageError(f"--register {register}: MLflow's registry takes --format pyfunc")
    if alias is not None and register is None:
        raise UsageError(f"--alias {alias}: is for a version in the registry; give --register NAME too")
    if register is not None:
        registry.check_names(register, alias)
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists() and not overwrite:
        raise UsageError(f"--output {output}: is there already; give another folder, or --overwrite")
    if output.exists() and not any((output / name).is_file() for name in (CARD, "MLmodel")):
        raise UsageError(f"--output {output}: is no export, so it stays as it is; give another folder")
