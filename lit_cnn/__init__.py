"""lit_cnn: which CNN, which transfer regime and which test-time trick is worth its cost, on your own images.

    data = lit_cnn.ImageDataModule("image_folder", root="photos")
    model = lit_cnn.LitClassifier.for_data(data, arch="tf_efficientnet_lite0", transfer="head_only", weights="offline")
    run = lit_cnn.fit(model, data, max_epochs=10)
    lit_cnn.load(run).predict("tigga.jpg")
    lit_cnn.ensemble([run, other], views=[1, 10])

What is public is here, and imported when it is first asked for.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from lit_cnn.core.errors import UsageError
from lit_cnn.core.moved import MovedModules

if TYPE_CHECKING:
    from lit_cnn.cli.fit_config import fit_config
    from lit_cnn.cli.tune_config import tune
    from lit_cnn.data.audit import check_data
    from lit_cnn.data.datamodule import ImageDataModule
    from lit_cnn.evaluation.compare import compare
    from lit_cnn.evaluation.ensemble import ensemble
    from lit_cnn.evaluation.report import report
    from lit_cnn.evaluation.soup import soup
    from lit_cnn.exports import export
    from lit_cnn.exports.load import load
    from lit_cnn.models.describe import describe
    from lit_cnn.tracking.run import Run
    from lit_cnn.tracking.runs import runs
    from lit_cnn.training.callbacks import default_callbacks as callbacks
    from lit_cnn.training.classifier import LitClassifier
    from lit_cnn.training.fit import fit

__version__ = "0.3.0"
__all__ = [
    "ImageDataModule",
    "LitClassifier",
    "Run",
    "UsageError",
    "callbacks",
    "check_data",
    "compare",
    "describe",
    "ensemble",
    "export",
    "fit",
    "fit_config",
    "load",
    "report",
    "runs",
    "soup",
    "tune",
]

# Name -> module, and the name there if it is another one.
_PLACES = {
    "ImageDataModule": "data.datamodule",
    "LitClassifier": "training.classifier",
    "Run": "tracking.run",
    "callbacks": "training.callbacks:default_callbacks",
    "check_data": "data.audit",
    "compare": "evaluation.compare",
    "describe": "models.describe",
    "ensemble": "evaluation.ensemble",
    "export": "exports",
    "fit": "training.fit",
    "fit_config": "cli.fit_config",
    "load": "exports.load",
    "report": "evaluation.report",
    "runs": "tracking.runs",
    "soup": "evaluation.soup",
    "tune": "cli.tune_config",
}

sys.meta_path.insert(0, MovedModules())


def __getattr__(name: str) -> Any:
    """Imports what is public when it is first asked for: torch, Lightning and MLflow take seconds."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lit_cnn.core.environment import set_environment

    set_environment()
    module, _, other_name = _PLACES[name].partition(":")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), other_name or name)
    return found


def __dir__() -> list[str]:
    """Lists what is public beside what is there."""
    return sorted({*globals(), *__all__})
