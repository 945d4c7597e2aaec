"""`lit-cnn fit FOLDER`: what stands on the command line without an option's name, as the options that it means.

A pure function of the arguments and of what is in the folder; nothing heavy is imported.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_cnn.cli.configs import Layer, available_configs, configs_folder, split_arguments
from lit_cnn.core.addresses import is_address
from lit_cnn.core.environment import says_one_of_several
from lit_cnn.core.errors import UsageError
from lit_cnn.data.file_kinds import IMAGE_SUFFIXES

PHOTOGRAPHS, FROM_SCRATCH = "photographs", "own_images"
"""The configurations that a folder means: with weights to start from, and without."""

_ALONE = ("--help", "-h", "--print_config")  # options without a value
_LISTS = (".csv", ".tsv", ".parquet")
_WITH_A_ROOT = ("manifest", "idx", "hf_disk", "webdataset")


def expand(command: str, arguments: Sequence[str]) -> list[str]:
    """Returns arguments in which a folder is spelt out as options; those that the user gives come after it, and win.

    Args:
        command: `fit`, or another that takes its options.
        arguments: What follows it, without `--seeds`.

    Raises:
        UsageError: If there is no such folder, several are given, or `--data.root` says another.
    """
    places, rest = take_places(arguments)
    if not places:
        return list(arguments)
    if len(places) > 1:
        remedy = f"give one folder: lit-cnn {command} FOLDER, and options as --name value"
        raise UsageError("folder", places[0], f"and {' '.join(places[1:])}: that is {len(places)} of them", remedy)
    layers, options = split_arguments(rest)
    if chosen([], options, "data", "root") is not None:
        raise UsageError("folder", places[0], "and `root` say where the images are", "give one of them")
    _check_place(places[0], command)
    own = [f"--data.root={places[0]}"]
    dataset = chosen(layers, options, "data", "dataset")
    if dataset not in _WITH_A_ROOT and not str(dataset).startswith("torchvision/"):
        own.append(f"--data.dataset={kind_of(Path(places[0]).expanduser())}")
    checkpoint = chosen([], options, "ckpt_path")
    if command in ("test", "validate", "best") or checkpoint not in (None, "last"):
        return [*own, *rest]  # the checkpoint has the configuration, or it is searched
    return [*_recipe(layers, options), *own, *rest]


def take_places(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns what stands in arguments of `lit-cnn fit` without an option's name, and the rest."""
    places, rest, is_value = list[str](), list[str](), False
    for text in arguments:
        if re.match("--|-[A-Za-z]", text):
            is_value = "=" not in text and text not in _ALONE
            rest.append(text)
        else:
            (rest if is_value else places).append(text)
            is_value = False
    return places, rest


def chosen(
    layers: Sequence[Layer], options: Sequence[str], section: str, name: str = "", default: str | None = None
) -> Any:
    """Returns the value of an option, which wins over those of configurations; None if that is null.

    Args:
        layers: Of the configurations, in their order.
        options: Of the command line, in their order.
        section: `data`, `model` or `trainer`; or an option that is in none.
        name: Of the option in its section.
        default: What to return if nothing gives it.
    """
    value: Any = default
    for layer in layers:
        within = layer.options.get(section) if name else layer.options
        value = (within or {}).get(name or section, value) if isinstance(within, Mapping) else value
        value = layer.arch if (section, name) == ("model", "arch") and layer.arch else value
    option = f"{section}.{name}" if name else section
    for place, text in enumerate(options):
        given, equals, after = text.removeprefix("--").partition("=")
        after = after if equals else options[place + 1] if place + 1 < len(options) else ""
        if not text.startswith("--"):
            continue
        if given == option:
            value = None if after in ("null", "None") else after
        elif given == section and name and isinstance(whole := _yaml(after), dict):
            value = whole.get(name, value)
    return value


def kind_of(place: Path) -> str:
    """Returns which `dataset` reads the images of a folder or file, by the names of what is in it."""
    if place.suffix.lower() in _LISTS and not place.is_dir():
        return "manifest"
    if place.suffix == ".tar" or "{" in place.name:
        return "webdataset"
    if not place.is_dir():  # of another host
        return "image_folder"
    entries = list(place.iterdir())
    names = {entry.name for entry in entries}
    if "dataset_dict.json" in names or {"dataset_info.json", "state.json"} <= names:
        return "hf_disk"
    if any(re.search(r"-ubyte(\.gz)?$", name) for name in names):
        return "idx"
    if any(entry.suffix == ".tar" for entry in entries) and not any(entry.is_dir() for entry in entries):
        return "webdataset"
    return "image_folder"


def from_scratch(arguments: Sequence[str]) -> list[str]:
    """Returns arguments of `lit-cnn fit` with what trains from random weights in the place of `PHOTOGRAPHS`."""
    layers, options = split_arguments(arguments)
    found, before = list[str](), ""
    for text in arguments:
        option, equals, value = text.partition("=") if text.startswith("-") else (before, "", text)
        if option in ("--config", "-c") and Path(value).name in (PHOTOGRAPHS, f"{PHOTOGRAPHS}.yaml"):
            if not equals:
                found.pop()
            found += _scratch_recipe(chosen(layers, options, "model", "arch"))
        else:
            found.append(text)
        before = text if text.startswith("-") and "=" not in text else ""
    return found


def _recipe(layers: Sequence[Layer], options: Sequence[str]) -> list[str]:
    """Returns the configurations that a folder means next to what else is given, and where weights come from."""
    weights = chosen([layer for layer in layers if not _is_regime(layer)], options, "model", "weights", default="")
    if weights is None or chosen(layers, options, "model", "transfer") == "scratch":
        return _scratch_recipe(chosen(layers, options, "model", "arch"))
    return [f"--config={PHOTOGRAPHS}", *([] if weights else ["--model.weights=auto"])]


def _is_regime(layer: Layer) -> bool:
    """Whether it is a regime's own file, which says `pretrained` for any weights that are to be had, or null."""
    of_run = str(layer.options.get("model", {}).get("weights")).startswith("runs:/")
    return layer.file.is_relative_to(configs_folder() / "transfer") and not of_run


def _scratch_recipe(arch: str | None) -> list[str]:
    own = [f"--config=model/{arch}"] if f"model/{arch}" in available_configs() else []
    return [f"--config={FROM_SCRATCH}", *own]


def _check_place(text: str, command: str) -> None:
    if is_address(text):  # looked at where it is read
        return
    place = Path(text).expanduser()
    if place.is_dir() or says_one_of_several() or "{" in text:  # else another host may have it, and is to hear of it
        return
    if not place.exists():
        raise UsageError("folder", text, "no such folder or file", _meant(text, place, command))
    if place.suffix.lower() in IMAGE_SUFFIXES:
        raise UsageError("folder", text, "is one image", "give the folder that has a sub-folder of images per class")
    if place.suffix.lower() not in (*_LISTS, ".tar"):
        remedy = f"give a folder of images (unpack an archive first), or a list of them in {', '.join(_LISTS)}"
        raise UsageError("folder", text, "is no folder", remedy)


def _meant(text: str, place: Path, command: str) -> str:
    if command in ("test", "validate") and re.fullmatch(r"(runs:/)?[0-9a-f]{6,32}", text):
        return f"for the run of that id give `ckpt_path={text}`"
    names = [name for name in available_configs() if text in (name, name.partition("/")[2])]
    if names:
        return f"for the configuration of that name give `config={text}`"
    folder = place.parent
    near = difflib.get_close_matches(place.name, [each.name for each in folder.iterdir()]) if folder.is_dir() else []
    if near:
        return f"did you mean {folder / near[0]}?"
    return "give the folder of your images; options are written --name value"


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None
