"""What MLflow accepts as a name or value, checked when a thing is logged rather than when it is sent."""

import posixpath
import re

from lit_cnn.core.errors import UsageError

MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 8000
MAX_DIGEST_LENGTH = 36
PARAM_CHANGED = "lit_cnn.param_changed."
"""What a tag begins with that has the last value of a param, where that is not the first."""
_MAX_NAME_LENGTH = 250
_MAX_EXPERIMENT_NAME_LENGTH = 500
_ALLOWED = re.compile(r"[/\w.\- :]+")  # mlflow/utils/validation.py: validate_param_and_metric_name


def check_metric_name(name: str) -> None:
    """Raises UsageError if MLflow would refuse the name of a metric."""
    _check(name, "metric")


def check_param_name(name: str) -> None:
    """Raises UsageError if MLflow would refuse the name of a parameter."""
    _check(name, "parameter")


def check_tag_name(name: str) -> None:
    """Raises UsageError if MLflow would refuse the name of a tag."""
    _check(name, "tag")


def check_experiment_name(name: str) -> None:
    """Raises UsageError if MLflow would refuse the name of an experiment."""
    if not name or len(name) > _MAX_EXPERIMENT_NAME_LENGTH:
        raise UsageError(
            None,
            f"experiment_name {name[:40]!r}",
            f"MLflow takes names of 1 to {_MAX_EXPERIMENT_NAME_LENGTH} characters",
        )


def cleaned(name: str) -> str:
    """Returns the name with characters that MLflow does not take replaced, cut to the length that it takes."""
    return re.sub(r"[^/\w.\- :]", "_", name)[:_MAX_NAME_LENGTH]


def sha256_tag(target: str) -> str:
    """Returns the tag of a run that has the SHA-256 of one of its checkpoints on a server."""
    return cleaned(f"lit_cnn.sha256.{target}")


def _check(name: str, what: str) -> None:
    if not _ALLOWED.fullmatch(name):
        raise UsageError(
            None,
            f"{what} {name!r}",
            "MLflow takes letters, digits, spaces and / _ . - : in names",
            f"rename the {what}",
        )
    normal = posixpath.normpath(name)
    if normal != name or normal.startswith(("/", "..")) or normal == ".":
        raise UsageError(
            None, f"{what} {name!r}", f"MLflow takes no name that reads as the path {normal!r}", f"rename the {what}"
        )
    if len(name) > _MAX_NAME_LENGTH:
        raise UsageError(None, f"{what} {name[:40]!r}…", f"MLflow takes names of at most {_MAX_NAME_LENGTH} characters")
