"""Which arithmetic a training step uses: bfloat16 with images laid out channels last where the hardware has it."""

from typing import Any, Literal

import torch
from torch import nn

Precision = Literal["bf16-mixed", "32-true"]

_X86_BF16 = ("amx_bf16", "avx512_bf16")
_CUDA_BF16 = (8, 0)  # compute capability, from Ampere on


def default_precision(accelerator: str) -> Precision:
    """Returns the precision, in Lightning's words, that is fastest at equal accuracy on this machine.

    Where bfloat16 is native, autocast with the channels-last layout makes a training step 2 to 4 times as fast as
    float32; elsewhere it is emulated, and slower.

    Args:
        accelerator: Lightning's: `cpu`, `gpu`, `cuda` or `auto`; with any other, float32.
    """
    return "bf16-mixed" if has_native_bf16(accelerator) else "32-true"


def has_native_bf16(accelerator: str) -> bool:
    """Tells whether the hardware that Lightning would choose computes in bfloat16."""
    if accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available()):
        return torch.cuda.is_available() and torch.cuda.get_device_capability() >= _CUDA_BF16
    if accelerator not in ("cpu", "auto"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _X86_BF16)


def is_cpu(accelerator: Any) -> bool:
    """Tells whether an accelerator, in Lightning's words, is the CPU here."""
    if accelerator == "auto":
        return not (torch.cuda.is_available() or torch.backends.mps.is_available())
    return accelerator == "cpu"


def has_depthwise_convolutions(net: nn.Module) -> bool:
    """Tells whether a network has convolutions of single channels, as MobileNet and EfficientNet do.

    A CPU computes them faster with channels last, in float32 too; plain convolutions of small images it does not.
    """
    return any(isinstance(each, nn.Conv2d) and each.groups == each.in_channels > 1 for each in net.modules())


def train_depthwise_in_float32(net: nn.Module) -> None:
    """Makes depthwise convolutions compute in float32 inside autocast on a CPU, while they or layers below train.

    A CPU's gradients of a depthwise convolution in bfloat16 take up to a hundred times as long as in float32 when it
    has a stride or is larger than 3x3: EfficientNet-Lite0's whole step takes twice as long. Those of stride 1 and 3x3
    are as fast, and stay; so does everything that only computes forward.

    Args:
        net: Changed in place, by hooks; its weights stay.
    """
    depthwise: list[Any] = [
        each for each in net.modules() if isinstance(each, nn.Conv2d) and each.groups == each.in_channels > 1
    ]
    for each in depthwise:
        if (each.stride, each.kernel_size) != ((1, 1), (3, 3)) and not hasattr(each, "left_autocast"):
            each.left_autocast = False
            each.register_forward_pre_hook(_leave_autocast)
            each.register_forward_hook(_enter_autocast, always_call=True)


def _leave_autocast(convolution: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    images, *others = inputs
    trains = torch.is_grad_enabled() and (images.requires_grad or convolution.weight.requires_grad)
    convolution.left_autocast = trains and images.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if not convolution.left_autocast:
        return inputs
    torch.set_autocast_enabled("cpu", False)
    return (images.float(), *others)


def _enter_autocast(convolution: Any, _inputs: Any, _output: Any) -> None:
    if convolution.left_autocast:
        torch.set_autocast_enabled("cpu", True)
