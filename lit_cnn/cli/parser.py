"""The parser of fit, validate and test: Lightning's, with errors of one line and lit_cnn's configurations."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from lit_cnn.cli.configs import own_options, split_arguments
from lit_cnn.core.errors import UsageError


class OneLineParser(LightningArgumentParser):
    """Lightning's argument parser; what it cannot parse becomes one line instead of sixty of usage."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raises a UsageError with the message's first sentence that says what is wrong."""
        raise UsageError(message=one_line(message, self._known_options())) from ex

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """Parses a file's content without what `arranged` has read of it."""
        root = yaml.compose(content, Loader=yaml.SafeLoader)
        if isinstance(root, yaml.MappingNode):
            loaded = yaml.safe_load(content)
            read = loaded.keys() - own_options(loaded).keys()
            root.value = [(key, value) for key, value in root.value if key.value not in read]
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
    of_files = [argument for layer in layers for argument in layer.arguments]
    return [*of_files, *options]


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
