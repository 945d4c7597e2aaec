"""The parser of fit, validate and test: Lightning's, with errors of one line."""

import difflib
import re
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

import lit_cnn
from lit_cnn.core.errors import UsageError


class OneLineParser(LightningArgumentParser):
    """Lightning's argument parser; what it cannot parse becomes one line instead of sixty of usage."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raises a UsageError with the message's first sentence that says what is wrong."""
        raise UsageError(one_line(message, self._known_options())) from ex

    def _known_options(self) -> list[str]:
        return [action.dest for action in self._actions if action.dest and "." in action.dest]


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


def default_config() -> Path:
    """Returns a path beside the configurations."""
    return Path(lit_cnn.__file__).parent.parent / "configs" / "default.yaml"
