"""What a computation ran on, in words."""

import platform
from pathlib import Path

import torch


def machine_name(device: torch.device) -> str:
    """Returns the name of a GPU, or of this machine's processor with the number of threads that torch has."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"


def _cpu_name() -> str:
    # platform.processor() is empty on Debian.
    lines = Path("/proc/cpuinfo")
    if lines.is_file():
        for line in lines.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
