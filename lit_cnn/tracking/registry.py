"""Exported models in MLflow: as a folder that it can serve, and as versions in its registry."""

import io
import logging
import re
import warnings
from collections.abc import Mapping
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lit_cnn.core.errors import UsageError
from lit_cnn.tracking import queries
from lit_cnn.tracking.client import import_mlflow
from lit_cnn.tracking.delivery import in_one_line, local_folder
from lit_cnn.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

_PACKAGE = Path(__file__).resolve().parents[1]
_SCRIPT = _PACKAGE / "tracking" / "pyfunc_model.py"
# What `pyfunc_model.py` imports, by itself and by way of the modules of lit_cnn that go with it.
_REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "opencv-python-headless", "pillow", "simplejpeg", "tqdm")
_MODEL = "model"


def save_pyfunc(folder: Path, export: Path, image_size: int) -> None:
    """Writes an MLflow model that runs an export of the format `onnx`; it is models from code, without a pickle.

    lit_cnn's own source goes along, so whoever loads it needs no more than the packages that it lists.

    Args:
        folder: Where to; empty.
        export: The export; its folder's name is `export`.
        image_size: Pixels of the blank image that is the example of an input.
    """
    import_mlflow()
    import pandas as pd

    # It would say that a model without the bytes of a pickle or of a known library is one from code.
    logging.getLogger("mlflow.models.model").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # MLflow's, of its own type hints at the first import, and of its own use of pandas.
        warnings.filterwarnings("ignore", ".*type hint is inferred as AnyType.*", UserWarning)
        warnings.filterwarnings("ignore", "Operation with range is deprecated", DeprecationWarning)
        import mlflow.pyfunc

        mlflow.pyfunc.save_model(
            folder,
            python_model=str(_SCRIPT),
            artifacts={"export": str(export)},
            code_paths=[str(_PACKAGE)],
            pip_requirements=[f"{name}=={installed(name)}" for name in _REQUIREMENTS],
            signature=_signature(),
            input_example=pd.DataFrame({"image": [_blank_png(image_size)]}),
        )


def check_names(name: str, alias: str | None) -> None:
    """Refuses what MLflow would not take as the name of a model or as an alias.

    Raises:
        UsageError: Naming it.
    """
    if not name.strip() or re.search(r"[/:@']", name):
        raise UsageError("register", name, "give a name without any of / : @ '")
    if alias is not None and (not re.fullmatch(r"[\w-]{1,255}", alias) or re.fullmatch(r"[vV]\d+|latest", alias)):
        raise UsageError("alias", alias, "give letters, digits, '-' and '_'", "not latest, nor v1 and the like")


def register(store: Store, folder: Path, name: str, alias: str | None, experiment: str, tags: Mapping[str, str]) -> str:
    """Makes an MLflow model a version in the registry, by way of a run that holds its files.

    Args:
        store: Where the registry is.
        folder: What `save_pyfunc` wrote.
        name: The registered model; made if there is none.
        alias: What this version is called from now on, such as `champion`; another version loses that name.
        experiment: Whose run it is.
        tags: The run's.

    Returns:
        The version's number.

    Raises:
        UsageError: If MLflow refuses.
    """
    from mlflow.exceptions import MlflowException

    in_experiment = queries.experiment_id(store, experiment)
    client = queries.client(store)
    try:
        run = client.create_run(in_experiment, tags=dict(tags), run_name=f"export_{name}")
        client.log_artifacts(run.info.run_id, str(folder), _MODEL)
        client.set_terminated(run.info.run_id)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        version = client.create_model_version(name, f"{run.info.artifact_uri}/{_MODEL}", run.info.run_id)
        if alias is not None:
            client.set_registered_model_alias(name, alias, version.version)
    except MlflowException as error:
        raise UsageError("register", name, f"{store.label} says: {in_one_line(error)}") from error
    return str(version.version)


def registered_model(store: Store, address: str) -> Path:
    """Returns a local path of a registered version's files; from a server they are copied to a temporary folder.

    Args:
        store: Where the registry is.
        address: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        UsageError: If there is no such version, or its files are not to be had.
    """
    version = queries.registered_version(store, address)
    if (local := local_folder(str(version.source))) is not None:
        return local
    inside = queries.artifact_of_version(version)
    if inside is None:
        raise UsageError(
            None, address, f"its source is {version.source}, no file of a run", "use lit-cnn export --register"
        )
    (run,) = queries.find_runs(store, [str(version.run_id)])
    return queries.download_artifact(store, run, inside)


def _signature() -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, DataType, Map, Schema, TensorSpec

    answers: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "class"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Map(DataType.double), "probabilities"),
    ]
    return ModelSignature(inputs=Schema([ColSpec(DataType.binary, "image")]), outputs=Schema(answers))


def _blank_png(size: int) -> bytes:
    # No image of the data: those may not be meant to leave with the model.
    file = io.BytesIO()
    Image.fromarray(np.full((size, size), 128, np.uint8)).save(file, "PNG")
    return file.getvalue()
