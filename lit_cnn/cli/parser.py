"""The parser of fit, validate and test: Lightning's, with errors of one line and lit_cnn's configurations."""

import ast
import difflib
import json
import re
from collections.abc import Sequence
from typing import Any

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from lit_cnn.cli.configs import Layer, own_options, split_arguments
from lit_cnn.cli.option_kinds import what_to_give
from lit_cnn.core.errors import UsageError

_NAMES = "--data.class_names"


class OneLineParser(LightningArgumentParser):
    """Lightning's argument parser; what it cannot parse becomes one line instead of sixty of usage."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raises a UsageError with the message's first sentence that says what is wrong."""
        if (mistake := _wrong_value(message)) is not None:
            raise mistake from ex
        raise UsageError(message=one_line(message, self._known_options())) from ex

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """Parses a file's content without what `arranged` has read of it."""
        root = yaml.compose(content, Loader=yaml.SafeLoader)
        if isinstance(root, yaml.MappingNode):
            loaded = yaml.safe_load(content)
            read = loaded.keys() - own_options(loaded).keys()
            root.value = [(key, value) for key, value in root.value if key.value not in read]
            _keep_names(root)
            # Nodes and not values: jsonargparse reads some numbers, such as 1e-3, otherwise than PyYAML.
            content = yaml.serialize(root)
        return super().parse_string(content, *args, **kwargs)

    def _known_options(self) -> list[str]:
        return [action.dest for action in self._actions if action.dest and "." in action.dest]


def arranged(arguments: Sequence[str]) -> list[str]:
    """Returns arguments for the parser, by whose order the last one wins: configurations first, then the options.

    Args:
        arguments: Of `lit-cnn fit`: configurations by name or path, and options, in any order.

    Raises:
        UsageError: If a configuration is not there, or cannot be read.
    """
    layers, options = split_arguments(arguments)
    of_files = [argument for layer in layers for argument in _arguments(layer)]
    return [*of_files, *_with_names_as_written(options)]


def _arguments(layer: Layer) -> list[str]:
    # jsonargparse reads the file of a section by itself, past `parse_string`.
    if layer.section == "data" and any(name.rstrip("+") == "class_names" for name in layer.options["data"]):
        return [f"--data={_section_with_names(layer.file.read_text(encoding='utf-8'))}"]
    return layer.arguments


def _with_names_as_written(options: Sequence[str]) -> list[str]:
    """Returns options with each class quoted: `[yes, 1]` are two names, and not a Boolean and a number, as in YAML."""
    written, before = [], ""
    for text in options:
        option, equals, value = text.partition("=")
        if before:
            written.append(_quoted(text, before.endswith("+")))
        elif equals and option == "--data":
            written.append(f"{option}={_section_with_names(value)}")
        elif equals and option.rstrip("+") == _NAMES:
            written.append(f"{option}={_quoted(value, option.endswith('+'))}")
        else:
            written.append(text)
        before = option if not equals and not before and option.rstrip("+") == _NAMES else ""
    return written


def _quoted(names: str, appends: bool) -> str:
    try:
        root = yaml.compose(names, Loader=yaml.SafeLoader)
    except yaml.YAMLError:  # for the parser to tell of
        return names
    if isinstance(root, yaml.ScalarNode) and appends:
        return json.dumps([root.value])
    if isinstance(root, yaml.SequenceNode) and all(isinstance(node, yaml.ScalarNode) for node in root.value):
        return json.dumps([node.value for node in root.value])
    return names


def _section_with_names(content: str) -> str:
    try:
        root = yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.YAMLError:  # for the parser to tell of
        return content
    if not isinstance(root, yaml.MappingNode):
        return content
    _keep_names(root)
    return str(yaml.serialize(root, allow_unicode=True))


def _keep_names(content: yaml.MappingNode) -> None:
    """Makes the classes in a file's content texts as they are written."""
    for key, value in content.value:
        if key.value == "data" and isinstance(value, yaml.MappingNode):
            _keep_names(value)
        if key.value.rstrip("+") == "class_names" and isinstance(value, yaml.SequenceNode):
            for node in value.value:
                if isinstance(node, yaml.ScalarNode):
                    node.tag, node.style = "tag:yaml.org,2002:str", '"'


def _wrong_value(message: str) -> UsageError | None:
    """Returns what jsonargparse says of a value, in words; None where it says anything else."""
    text = " ".join(message.split())
    found = re.search(r'"([\w.]+)": (.*?)\.? (?:Got value:|Given value type: .*? Given value:) (.*)$', text)
    if found is None or not (kinds := re.findall(r"Expected an? (typing\.Literal\[.*?\]|<class '\w+'>)", found[2])):
        return None
    literals = [value for kind in kinds if "Literal" in kind for value in ast.literal_eval(kind[14:])]
    types = [kind[8:-2] for kind in kinds if "Literal" not in kind]
    if found[1] == "data.augment" and "list" in types:
        remedy = (
            "give a preset with `config=augment/standard` (lit-cnn configs lists them), or a list in YAML, [] for none"
        )
        return UsageError(found[1], found[3], "is no list of transforms", remedy)
    if types and {"list", "NoneType"}.issuperset(types) and "list" in types:
        return UsageError(found[1], found[3], "give a list in YAML, such as [A, B]")
    if len(kinds) < found[2].count("Expected ") or not {"int", "float", "bool", "NoneType"}.issuperset(types):
        return None
    what = what_to_give([str(value) for value in literals], types, "NoneType" in types)
    return UsageError(found[1], found[3], what)


def one_line(message: str, known: list[str]) -> str:
    """Shortens jsonargparse's message to one line and adds the option that an unknown one may have meant."""
    text = " ".join(message.split())
    text = re.sub(r"^(Parser key|Problem with given class_path) ", "", text)
    text = re.sub(r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: - ", "", text)
    unknown = re.search(
        r"(?:does not accept|Unrecognized).*?'?(?:nested key|option|arguments:?)\s*'?-{0,2}([\w.]+)", text
    )
    if unknown is not None:
        name = unknown[1]
        near = difflib.get_close_matches(name.rpartition(".")[2], {key.rpartition(".")[2] for key in known}, 3, 0.6)
        if near:
            text += f" (did you mean {', '.join(near)}?)"
    return text[:600]
