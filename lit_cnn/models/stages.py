"""The stages of a network, from stem to head: what is frozen, trained or cut off as one.

`lit-cnn describe ARCH --stages` lists them; the transfer regimes go by the same numbers.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # `describe` tells a mistake in its arguments without the seconds that torch takes to import.
    from torch import nn


def stage_parameters(net: "nn.Module") -> list[list[str]]:
    """Returns the names of each stage's parameters: the groups of timm's `group_matcher(coarse=True)`.

    Args:
        net: A network with timm's contract.

    Raises:
        ValueError: If it is not made to be split, as few of timm's are; the message says why.
    """
    from timm.models import group_parameters

    try:
        group_matcher: Any = net.group_matcher
        groups = group_parameters(net, group_matcher(coarse=True))
    except (AssertionError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"is not made to be split into stages: {error}") from error
    return [groups[number] for number in sorted(groups)]


def stage_layers(parameters: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of the layers that hold these parameters, each once, in their order."""
    return tuple(dict.fromkeys(name.rpartition(".")[0] or "(root)" for name in parameters))


def list_of_stages(net: "nn.Module") -> str:
    """Returns the stages with the first layer of each, for a message: `0 (conv1), 1 (layer1.0.conv1), …`."""
    stages = stage_parameters(net)
    return ", ".join(f"{number} ({stage_layers(names)[0]})" for number, names in enumerate(stages))
