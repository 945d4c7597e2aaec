"""Parts of libraries that are imported at every start and used in none: two of four seconds.

torchvision and Lightning import torch's compiler for one function and one class, and so does torch itself for its
first optimizer; torchmetrics imports scipy.signal for a name. A stand-in takes the place of each, and makes way for the
module itself as soon as anything else of it is asked for.
"""

import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable
from typing import Any

_COMPILER = "torch._dynamo"
_disabled: list[Callable[..., Any]] = []  # functions of torch that its compiler is to leave alone, once it is there
_settings = types.SimpleNamespace()  # what timm sets in the compiler's configuration


class StandIn(types.ModuleType):
    """Has some attributes of a module; for any other the module itself is imported, and takes its place.

    Args:
        name: Of the module.
        **attributes: Those that need no import.
    """

    def __init__(self, name: str, **attributes: Any) -> None:
        super().__init__(name)
        self.__dict__.update(attributes)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # asked for by the import system, or by who lists modules
        return getattr(_real(self.__name__), name)


def postpone_imports() -> None:
    """Puts the stand-ins in place of modules that are not imported yet; for a process that compiles nothing by itself.

    Whoever calls `torch.compile` all the same gets the compiler.
    """
    if "scipy.signal" not in sys.modules:
        sys.modules["scipy.signal"] = StandIn("scipy.signal", hamming=None, __path__=_path_of("scipy.signal"))
    if _COMPILER not in sys.modules:
        utils = StandIn(f"{_COMPILER}.utils", is_compile_supported=_is_compile_supported)
        optimized = _OfCompiler("OptimizedModule", (), {})
        sys.modules[_COMPILER] = StandIn(
            _COMPILER,
            __path__=_path_of(_COMPILER),
            OptimizedModule=optimized,
            config=_settings,
            disable=_disable,
            graph_break=_do_nothing,
            is_compiling=_do_nothing,
            utils=utils,
        )
        sys.modules[f"{_COMPILER}.utils"] = utils


def _path_of(package: str) -> list[str]:
    """Returns where a package's modules are found; nothing is imported."""
    library, *inside = package.split(".")
    spec = importlib.util.find_spec(library)
    folders = spec.submodule_search_locations if spec is not None else None
    return [os.path.join(folder, *inside) for folder in folders or ()]


class _OfCompiler(type):
    """The class of a class that has the instances of the compiler's own `OptimizedModule`: none before it is there."""

    def __instancecheck__(cls, instance: Any) -> bool:
        compiler: Any = sys.modules.get(_COMPILER)
        return not isinstance(compiler, StandIn | None) and isinstance(instance, compiler.OptimizedModule)


def _is_compile_supported(device_type: str) -> bool:
    return bool(_real(f"{_COMPILER}.utils").is_compile_supported(device_type))


def _do_nothing(*_: Any, **__: Any) -> None:
    """What the compiler's functions do outside of what it compiles."""


def _disable(function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
    _disabled.append(function)
    return function


def _real(name: str) -> types.ModuleType:
    """Imports the module that a stand-in was for."""
    package = _COMPILER if name.startswith(_COMPILER) else name
    for each in [each for each, module in sys.modules.items() if isinstance(module, StandIn)]:
        if each.startswith(package):
            del sys.modules[each]
    while _disabled:
        vars(_disabled.pop()).pop("__dynamo_disable", None)  # torch asks the compiler itself from now on
    module = importlib.import_module(name)
    if package == _COMPILER:
        compiler: Any = sys.modules[_COMPILER]
        for setting, value in vars(_settings).items():
            setattr(compiler.config, setting, value)
    return module
