"""A network layer by layer: output shapes, parameters and multiply-adds, and what its paper says.

The network is built and tried on the meta device, so no weights are drawn or downloaded and ResNet-152 takes seconds.
"""

import bisect
import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lit_cnn.core.errors import UsageError
from lit_cnn.models import BUILDERS, create_model, least_image_size, resolve_arch
from lit_cnn.models.stages import stage_layers, stage_parameters

if TYPE_CHECKING:
    # torch takes seconds to import; a mistake in the arguments is told without it.
    import torch
    from torch import nn

TOTALS = ("parameters", "multiply_adds", "activation_bytes")
"""What is summed over a network, and what a `PAPER` may give a figure for."""

_OTHER_SIZE = 224  # pixels; where nothing says what a network is made for
_LARGE_IMAGE = 200  # pixels; networks for such images come from ImageNet


@dataclass(frozen=True)
class Layer:
    """A module without modules inside it, or one that has parameters or multiply-adds of its own besides those inside.

    Attributes:
        name: Its path in the network, `layer1.0.conv1`; `(root)` for the network itself.
        type: Name of its class.
        output_shape: Of its last call, for one image and without the batch axis; with it where that is not 1, as in
            Swin's windows; None for one that is not called: a side branch, or weights that another layer reads.
        parameters: Numbers in its own parameters; those that several layers share count for the first only.
        multiply_adds: For one image, over all its calls, without those of the modules inside it.
    """

    name: str
    type: str
    output_shape: tuple[int, ...] | None
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Stage:
    """Layers that are frozen or trained as one: a group of timm's `group_matcher(coarse=True)`, from stem to head.

    Attributes:
        number: From 0, the stem.
        layers: Names of its layers with parameters.
        output_shape: As in `Layer`, of the last layer or block with parameters; pooling after it is not included.
        parameters: Sum over its layers.
        multiply_adds: Sum over its layers.
    """

    number: int
    layers: tuple[str, ...]
    output_shape: tuple[int, ...] | None
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Description:
    """What `lit-cnn describe` shows.

    Attributes:
        arch: Name with its origin: `lit/lenet5`.
        image_size: Height and width of the image in pixels.
        in_channels: Channels of the image.
        num_classes: Number of logits.
        native_image_size: The size in pixels that the network was made for.
        least_image_size: The size from which on it takes all; None for a network that takes certain sizes only.
        layers: In the order in which they are called.
        totals: `parameters` and `multiply_adds` are the sums over the layers. `activation_bytes` is what the outputs of
            the modules without modules inside take in float32, for one image. An output that is the input itself
            (identity, dropout in evaluation, ReLU in place) takes none; neither do functions that are no module.
        paper: The paper's figures by the names of the totals, and `source`; empty where there are none.
        stages: The network's stages, if they were asked for.
    """

    arch: str
    image_size: int
    in_channels: int
    num_classes: int
    native_image_size: int
    least_image_size: int | None
    layers: tuple[Layer, ...]
    totals: dict[str, int]
    paper: dict[str, float | str]
    stages: tuple[Stage, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values that JSON can hold; without `stages` if they were not asked for."""
        return {name: value for name, value in asdict(self).items() if name != "stages" or value is not None}

    def to_json(self) -> str:
        """Returns `to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2)


def describe(
    arch: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    stages: bool = False,
    **arch_options: Any,
) -> Description:
    """Describes an architecture in evaluation, for one image; draws and downloads no weights.

    Multiply-adds are half of what `torch.utils.flop_counter` counts: those of convolutions and matrix products,
    attention included; additions of a bias, normalisation, activation and pooling count nothing.

    A paper's figures come from the constant `PAPER` of the architecture's module, `{name: {"parameters": 60_000,
    "source": "LeCun et al. 1998, section II-B"}}`, where there is one.

    Args:
        arch: Name of the architecture, as for `create_model`.
        num_classes: Number of logits; by default 1000 if the native size is 200 px or more, else 10.
        in_channels: Channels of the image; by default the architecture's own.
        image_size: Height and width of the image in pixels; by default the native size.
        stages: Give the stages too.
        **arch_options: Further arguments of the architecture, or of `timm.create_model`.

    Raises:
        UsageError: As `create_model`; if a number is too small; or if stages are asked for and there are none.

    Example:
        >>> lit_cnn.describe("resnet18", num_classes=10).totals["parameters"]
        11181642
    """
    for option, value, least in (("num_classes", num_classes, 0), ("in_channels", in_channels, 1)):
        if value is not None and value < least:
            raise UsageError(option, value, f"give {least} or more")
    import torch

    resolved = resolve_arch(arch)
    native_channels, native_size = _native_input(resolved)
    size = native_size if image_size is None else image_size
    channels = native_channels if in_channels is None else in_channels
    classes = (1000 if native_size >= _LARGE_IMAGE else 10) if num_classes is None else num_classes
    with torch.device("meta"):
        net = create_model(arch, num_classes=classes, in_channels=channels, image_size=size, **arch_options).eval()
        calls = _trace(net, torch.empty(1, channels, size, size))
    layers = tuple(_layers(net, calls))
    return Description(
        arch=resolved,
        image_size=size,
        in_channels=channels,
        num_classes=classes,
        native_image_size=native_size,
        least_image_size=_least(net, resolved, size, classes, channels, arch_options),
        layers=layers,
        totals={
            "parameters": sum(layer.parameters for layer in layers),
            "multiply_adds": sum(layer.multiply_adds for layer in layers),
            "activation_bytes": sum(call.output_bytes for call in calls.values()),
        },
        paper=_paper(resolved),
        stages=tuple(_stages(net, calls, resolved)) if stages else None,
    )


def measure(net: "nn.Module", images: "torch.Tensor") -> list[Layer]:
    """Returns the layers of any network, as `describe` does.

    Args:
        net: The network, left as it was; on the meta device nothing is computed.
        images: A batch `(1, C, H, W)` on the network's device.
    """
    return list(_layers(net, _trace(net, images)))


@dataclass
class _Call:
    """What is known of a module that was called, over all its calls."""

    entered: int  # Position of its first call among all modules'.
    left: int = 0  # Position of its last return among all modules'.
    flops: int = 0  # Without those of the modules inside it.
    output_bytes: int = 0  # In float32; 0 if there are modules inside.
    output_shape: tuple[int, ...] | None = None


def _trace(net: "nn.Module", images: "torch.Tensor") -> "dict[nn.Module, _Call]":
    """Sends images through the network and returns its modules in the order of their first calls.

    The counter's own table is keyed by class names and paths, and counts an operation for every module around it. Its
    running total, read whenever a module is entered or left, gives each operation to the innermost module only.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    calls: dict[nn.Module, _Call] = {}
    open_modules: list[nn.Module] = []
    has_inner: list[bool] = []
    seen = num_returns = 0

    def charge() -> None:
        """Gives what was counted since the last time to the innermost open module."""
        nonlocal seen
        total = counter.get_total_flops()
        if open_modules:
            calls[open_modules[-1]].flops += total - seen
        seen = total

    def enter(module: "nn.Module", _arguments: Any) -> None:
        """Opens a module before it is called."""
        charge()
        calls.setdefault(module, _Call(entered=len(calls)))
        if has_inner:
            has_inner[-1] = True
        open_modules.append(module)
        has_inner.append(False)

    def leave(module: "nn.Module", arguments: tuple[Any, ...], output: Any) -> None:
        """Closes a module after it was called, and notes what it gave."""
        nonlocal num_returns
        charge()
        num_returns += 1
        outputs = list(_tensors(output))
        call = calls[open_modules.pop()]
        call.left = num_returns
        call.output_shape = _without_batch_axis(outputs[0].shape) if outputs else None
        if not has_inner.pop():
            call.output_bytes += sum(4 * out.numel() for out in outputs if not any(out is given for given in arguments))

    hooks = [module.register_forward_pre_hook(enter) for module in net.modules()]
    hooks += [module.register_forward_hook(leave) for module in net.modules()]
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    net.requires_grad_(False)  # The counter cannot follow a parameter that is the input of a module.
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(images)
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in trainable:
            parameter.requires_grad_(True)
    return calls


def _layers(net: "nn.Module", calls: "dict[nn.Module, _Call]") -> Iterator[Layer]:
    from torch import nn

    # What is never called (a side branch) stays where it was defined: after the module before it.
    places, place = [], 0
    for name, module in net.named_modules():
        place = calls[module].entered if module in calls else place
        places.append((place, name, module))
    counted: set[nn.Parameter] = set()
    for _, name, module in sorted(places, key=lambda entry: entry[0]):
        own = set(module.parameters(recurse=False)) - counted
        counted |= own
        call = calls.get(module)
        # An empty nn.Sequential is an identity too.
        is_leaf = call and not any(module.children()) and not isinstance(module, nn.Identity | nn.Sequential)
        if own or is_leaf or (call and call.flops):
            yield Layer(
                name=name or "(root)",
                type=type(module).__name__,
                output_shape=call.output_shape if call else None,
                parameters=sum(parameter.numel() for parameter in own),
                multiply_adds=call.flops // 2 if call else 0,
            )


def _stages(net: "nn.Module", calls: "dict[nn.Module, _Call]", resolved: str) -> Iterator[Stage]:
    try:
        stages = stage_parameters(net)
    except ValueError as error:
        raise UsageError("stages", None, f"{resolved} {error}") from error
    parameters = dict(net.named_parameters())
    number_of = {parameters[name]: number for number, names in enumerate(stages) for name in names}
    multiply_adds, shapes, number = [0] * len(stages), {}, 0
    for module, call in calls.items():
        # A module without parameters belongs to the stage of the one before it.
        number = next((number_of[parameter] for parameter in module.parameters()), number)
        multiply_adds[number] += call.flops // 2
    for module, call in sorted(calls.items(), key=lambda item: item[1].left):
        if len(inside := {number_of[parameter] for parameter in module.parameters()}) == 1:
            shapes[inside.pop()] = call.output_shape  # The last one that lies in this stage as a whole.
    for number, names in enumerate(stages):
        yield Stage(
            number=number,
            layers=stage_layers(names),
            output_shape=shapes.get(number),
            parameters=sum(parameters[name].numel() for name in names),
            multiply_adds=multiply_adds[number],
        )


def _native_input(resolved: str) -> tuple[int, int]:
    """Returns the channels and the height in pixels of the images that the architecture was made for."""
    origin, name = resolved.split("/", 1)
    if origin == "lit":
        arguments = inspect.signature(pkgutil.resolve_name(f"lit_cnn.models.{BUILDERS[name]}")).parameters.values()
        defaults = {argument.name: argument.default for argument in arguments if argument.default is not argument.empty}
        return defaults.get("in_channels", 3), defaults.get("image_size", _OTHER_SIZE)
    if origin == "timm":
        import timm

        config = timm.get_pretrained_cfg(name)
        if config is not None and config.input_size:
            return config.input_size[0], config.input_size[-1]
    if origin == "torchvision":
        from lit_cnn.models.torchvision_net import native_size

        return 3, native_size(name)
    return 3, _OTHER_SIZE


def _least(
    net: "nn.Module", resolved: str, image_size: int, num_classes: int, in_channels: int, options: dict[str, Any]
) -> int | None:
    """Returns the size in pixels from which on the architecture takes all; it is known to take `image_size`."""
    import torch

    if resolved.startswith("lit/"):
        try:
            return least_image_size(resolved, num_classes=num_classes, in_channels=in_channels, **options)
        except UsageError:
            return None

    # Any other is the same network at every size: it need not be built again for each.
    def fits(size: int) -> bool:
        """Tells whether it takes square images of `size` pixels."""
        try:
            with torch.device("meta"), torch.no_grad():
                net(torch.empty(1, in_channels, size, size))
        except Exception:  # each network fails in its own way
            return False
        return True

    # One that refuses the next size is made for this one, or for multiples of its patches.
    if not fits(image_size + 1):
        return None
    # By halves, one that takes every size would need eight passes more.
    return 1 if fits(1) else 1 + bisect.bisect_left(range(1, image_size), True, key=fits)


def _paper(resolved: str) -> dict[str, float | str]:
    origin, name = resolved.split("/", 1)
    if origin != "lit":
        return {}
    module = importlib.import_module(f"lit_cnn.models.{BUILDERS[name].partition(':')[0]}")
    return dict(getattr(module, "PAPER", {}).get(name, {}))


def _tensors(output: Any) -> "Iterator[torch.Tensor]":
    import torch

    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, dict | list | tuple):
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors(part)


def _without_batch_axis(shape: "torch.Size") -> tuple[int, ...]:
    return tuple(shape[1:] if shape[:1] == (1,) else shape)
