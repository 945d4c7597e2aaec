"""Configurations by name, from any directory: `own_images`, `transfer/head_only`, `model/resnet56`.

A file holds options by section, as `lit-cnn fit` takes them, and three keys of its own:

- `include: [data/digits, model/lenet5]` names configurations that come before it; what is later wins.
- `archs: [plain20, …]` makes it a recipe for several architectures, known by their names; `{arch}` in its comment
  and in what it includes stands for one.
- `name: "{arch}_scratch_…"` says how those are called, if not as the architecture.

Files of 0.1 work too: `data: ../data/digits.yaml` includes a file, and `--data FILE` takes one with a section's options
alone.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import lit_cnn
from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import write_text_atomically

SECTIONS = ("data", "model", "trainer")
_SEARCH = "search"  # the folder of what `lit-cnn tune --search` knows by name


def configs_folder() -> Path:
    """Returns the folder of the ready configurations: inside the installed package, beside it in a checkout.

    Raises:
        UsageError: If it is in neither place.
    """
    package = Path(lit_cnn.__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "experiment").is_dir():
            return folder
    raise UsageError(None, package, "its folder of configurations is missing", "install lit_cnn anew")


def available_configs() -> dict[str, str]:
    """Returns what can follow `--config`, by name, `model/resnet56`, each with a line that says what it is."""
    return {name: _comment(*place).partition("\n")[0] for name, place in _places().items()}


def load_config(name: str) -> dict[str, Any]:
    """Returns a configuration's options by section, with all that it includes.

    Args:
        name: Such as `own_images`, `transfer/head_only` or a YAML file.

    Raises:
        UsageError: If there is none, or it cannot be read.
    """
    config: dict[str, Any] = {}
    for layer in layers_of(name):
        config = _overlay(config, layer.options)
    return config


def config_text(name: str) -> str:
    """Returns a configuration as one YAML text that needs no other file.

    Args:
        name: As for `load_config`.

    Raises:
        UsageError: If there is none, or it cannot be read.
    """
    layers = layers_of(name)
    if len(layers) == 1 and layers[0].arch is None:
        return layers[0].file.read_text(encoding="utf-8")
    comment = "".join(f"# {line}\n" for line in _comment(layers[-1].file, layers[-1].arch).splitlines())
    return comment + yaml.safe_dump(load_config(name), sort_keys=False, default_flow_style=None, width=120)


def available_searches() -> dict[str, str]:
    """Returns what `lit-cnn tune --search` knows by name, `search/lr`, each with a line that says what it is."""
    return {f"{_SEARCH}/{file.stem}": _comment(file, None).partition("\n")[0] for file in _searches()}


def search_text(name: str) -> str:
    """Returns the text of what a search tries.

    Args:
        name: Such as `lr` or `search/lr`, or a YAML file.

    Raises:
        UsageError: If there is none, or it cannot be read.
    """
    files = {file.stem: file for file in _searches()}
    file = Path(name).expanduser()
    if not file.is_file():
        plain = _without_folder(name).removeprefix(f"{_SEARCH}/")
        if plain not in files:
            reason = "is a folder" if file.is_dir() else "no such file, and no search of that name"
            raise UsageError("search", name, reason, f"give a file, or one of {', '.join(files)}")
        file = files[plain]
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("search", name, f"cannot be read ({' '.join(str(error).split())})") from error


def _searches() -> list[Path]:
    return sorted((configs_folder() / _SEARCH).glob("*.yaml"))


def copy_config(name: str, file: Path) -> None:
    """Writes a configuration into a file, to be changed there.

    Args:
        name: As for `load_config`.
        file: The new YAML file.

    Raises:
        UsageError: If there is no such configuration, or the file is there already or cannot be written.
    """
    text = _text_of_any(name)
    if file.exists():
        raise UsageError("output", file, "is there already", "give another file")
    try:
        write_text_atomically(file, text)
    except OSError as error:
        raise UsageError("output", file, f"cannot be written ({error.strerror})", "give another file") from error


@dataclass(frozen=True)
class Layer:
    """The options of one file, those of the files that it includes left out.

    Attributes:
        file: Where they stand.
        options: By section.
        arch: The architecture that a recipe is taken for.
        section: The one section that the whole file is for, in the form of 0.1.
    """

    file: Path
    options: dict[str, Any]
    arch: str | None = None
    section: str | None = None

    @property
    def arguments(self) -> list[str]:
        """What says the same on the command line of jsonargparse."""
        return [
            f"--{self.section or 'config'}={self.file.absolute()}",
            *([f"--model.arch={self.arch}"] if self.arch else []),
        ]


def layers_of(
    name: str, option: str = "config", folder: Path = Path(), inside_of: tuple[Path, ...] = ()
) -> list[Layer]:
    """Returns the layers of a configuration; a later one wins.

    Args:
        name: As for `load_config`.
        option: What the name was given for: `config`, or a section.
        folder: Where a relative path begins.
        inside_of: The files that include this one.

    Raises:
        UsageError: If there is none, or it cannot be read.
    """
    file, arch = _find(name, option, folder)
    if file in inside_of:
        raise UsageError(option, name, "includes itself", "take it out of one of the files")
    content = _read(file, name, option)
    if option != "config" and not {option, "include"} & content.keys():
        return [Layer(file, {option: content}, section=option)]
    if arch is None and "archs" in content:
        names = ", ".join(each for each, place in _places().items() if place[0].samefile(file))
        raise UsageError(option, name, "is a recipe for several networks", f"give one of {names}")
    own = own_options(content)
    if option != "config" and own.keys() - {option}:
        others = ", ".join(sorted(own.keys() - {option}))
        raise UsageError(option, name, f"has options of {others} too", f"give it as `config={name}`")
    layers = []
    for section, included in _included(content, name, option):
        layers += layers_of(included.replace("{arch}", arch or ""), section, file.parent, (*inside_of, file))
    if arch is not None:
        own = _overlay(own, {"model": {"arch": arch}})
    return [*layers, Layer(file, own, arch)]


def own_options(content: dict[str, Any]) -> dict[str, Any]:
    """Returns what a file's content says to the parser: without what only `layers_of` reads."""
    read_here = {"include", *(["archs", "name"] if "archs" in content else [])}
    read_here |= {section for section in SECTIONS if isinstance(content.get(section), str)}
    return {key: value for key, value in content.items() if key not in read_here}


def split_arguments(arguments: Sequence[str]) -> tuple[list[Layer], list[str]]:
    """Returns the layers of the configurations in arguments of `lit-cnn fit`, and the options, each in their order.

    Raises:
        UsageError: If a configuration is not there, or cannot be read.
    """
    layers, options, rest = list[Layer](), list[str](), iter(arguments)
    for text in rest:
        option, equals, value = text.partition("=")
        name = "config" if option in ("--config", "-c") else option.removeprefix("--")
        if not option.startswith("-") or name not in ("config", *SECTIONS):
            options.append(text)
            continue
        value = value if equals else next(rest, "")
        if not value or value.startswith("-"):
            raise UsageError(name, None, "give a name or a file; lit-cnn configs lists the names")
        if name != "config" and value.lstrip().startswith("{"):
            options.append(f"{option}={value}")
        else:
            layers += layers_of(value, name)
    return layers, options


def configs(arguments: list[str]) -> int:
    """`lit-cnn configs`: lists the configurations, prints one, or copies it out."""
    from lit_cnn.cli.verbs import CommandParser

    parser = CommandParser(
        prog="lit-cnn configs",
        description="List what can follow --config in any directory, and below search/ what can follow lit-cnn tune "
        "--search; with a name, print it with all that it includes.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="such as own_images, transfer/head_only, model/vgg16")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write it into a new file, to be edited")
    options = parser.parse_args(arguments)
    if options.name is None and options.output is not None:
        raise UsageError("output", options.output, "give the configuration's NAME too")
    if options.output is not None:
        copy_config(options.name, options.output)
        print(options.output)
    elif options.name is not None:
        print(_text_of_any(options.name), end="")
    else:
        print("\n".join(_table(dict(sorted({**available_configs(), **available_searches()}.items())))))
    return 0


def _text_of_any(name: str) -> str:
    return search_text(name) if name in available_searches() else config_text(name)


def _table(lines: dict[str, str]) -> Iterator[str]:
    width, folder = max(len(name.partition("/")[2]) for name in lines), ""
    for name, line in lines.items():
        group, _, short = name.partition("/")
        if group != folder:
            yield f"{group}/"
            folder = group
        yield f"  {short:{width}}  {line}"


def _find(name: str, option: str, folder: Path) -> tuple[Path, str | None]:
    """Returns the file of a path or a name, and the architecture for which a recipe is taken."""
    if (folder / name).is_file():
        return folder / name, None
    if option == "data" and (folder / name).is_dir():
        raise UsageError(option, name, "is a folder of images, not a configuration", f"give `root={name}`")
    places, plain = _places(), _without_folder(name)
    found = [each for each in places if plain in (each, each.partition("/")[2])]
    if len(found) == 1:
        return places[found[0]]
    if found:
        raise UsageError(option, name, f"may be {' or '.join(found)}", "give one of them")
    words = {each: each for each in places} | {each.partition("/")[2]: each for each in places}
    near = dict.fromkeys(words[word] for word in difflib.get_close_matches(plain, words, 3, 0.6))
    hint = f"did you mean {', '.join(near)}? " if near else ""
    raise UsageError(
        option, name, "no such file, and no configuration of that name", f"{hint}lit-cnn configs lists all"
    )


def _without_folder(name: str) -> str:
    """`configs/model/resnet56.yaml`, `../model/resnet56.yaml` -> `model/resnet56`."""
    path = Path(name)
    if path.is_relative_to(configs_folder()):
        path = path.relative_to(configs_folder())
    return re.sub(r"^(\.{1,2}/)*(configs/)?|\.ya?ml$", "", path.as_posix())


def _places() -> dict[str, tuple[Path, str | None]]:
    """Name -> its file, and the architecture for which that is taken if it is a recipe."""
    places: dict[str, tuple[Path, str | None]] = {}
    for file in sorted(file for file in configs_folder().glob("*/*.yaml") if file.parent.name != _SEARCH):
        text = file.read_text(encoding="utf-8")
        recipe = yaml.safe_load(text) if re.search("^archs:", text, re.MULTILINE) else {}
        names = {str(recipe.get("name", "{arch}")).format(arch=arch): arch for arch in recipe.get("archs", [])}
        for name, arch in (names or {file.stem: None}).items():
            places[f"{file.parent.name}/{name}"] = file, arch
    return dict(sorted(places.items()))


def _comment(file: Path, arch: str | None) -> str:
    lines = re.match(r"(#.*\n)*", file.read_text(encoding="utf-8"))
    assert lines is not None
    return re.sub("^# ?", "", lines[0], flags=re.MULTILINE).replace("{arch}", arch or "{arch}")


def _read(file: Path, name: str, option: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(option, name, f"is no YAML: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise UsageError(option, name, "holds no options", "give lines such as 'trainer:' and '  max_epochs: 10'")
    return content or {}


def _included(content: dict[str, Any], name: str, option: str) -> Iterator[tuple[str, str]]:
    """Yields (`config` or a section, name or path) of what a file includes."""
    include = content.get("include") or []
    include = [include] if isinstance(include, str) else include
    if not isinstance(include, list) or not all(isinstance(each, str) for each in include):
        raise UsageError(option, name, "include: give a list of names and files")
    yield from (("config", each) for each in include)
    yield from ((section, content[section]) for section in SECTIONS if isinstance(content.get(section), str))


def _overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Returns options with those of a later file on top, as jsonargparse puts them: `callbacks+` appends to a list."""
    merged = dict(below)
    for name, value in above.items():
        plain = name.removesuffix("+")
        if name in SECTIONS and isinstance(value, dict):
            merged[name] = _overlay(merged.get(name) or {}, value)
        elif plain != name:
            place = plain if plain in merged else name
            merged[place] = [*(merged.get(place) or []), *(value if isinstance(value, list) else [value])]
        else:
            merged.pop(f"{name}+", None)
            merged[name] = value
    return merged
