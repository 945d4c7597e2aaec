"""The names that modules had in 0.1: YAML files and scripts of users name classes by them."""

import importlib
import importlib.abc
import importlib.machinery
import types
import warnings
from collections.abc import Sequence
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
_ROOMS = ("core", "data", "data.sources", "training", "training.callbacks", "tracking")
_RENAMED = {"exported": "portable", "datasets": "data.sources", "callbacks": "training.callbacks"}


class MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `lit_cnn.pca_color` and the like where they are now, and says so; goes with 0.4."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns a spec for a name of 0.1; None for every other."""
        return importlib.machinery.ModuleSpec(name, self) if new_name(name) else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Returns the module itself, not a second copy of it."""
        name = new_name(spec.name)
        assert name is not None
        warnings.warn(f"{spec.name} is now {name}; the old name goes with 0.4", FutureWarning, stacklevel=2)
        module = importlib.import_module(name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Gives the module back the spec that the import system has replaced; its code has run."""
        module.__spec__ = self._spec


def new_name(name: str) -> str | None:
    """Returns the name of today of a module that has moved, None for every other: `lit_cnn.data.pca_color`."""
    package, _, old = name.partition(".")
    if package != "lit_cnn" or not old or _is_module(old):
        return None
    if old in _RENAMED:
        return f"lit_cnn.{_RENAMED[old]}"
    last = old.rpartition(".")[2]
    if old not in (last, f"datasets.{last}", f"cli.{last}"):
        return None
    return next((f"lit_cnn.{room}.{last}" for room in _ROOMS if _is_module(f"{room}.{last}")), None)


def _is_module(name: str) -> bool:
    place = _PACKAGE.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()
