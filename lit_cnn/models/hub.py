"""Pretrained weights: from a hub, asked in seconds rather than minutes of retries, or from a file."""

import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import nn

from lit_cnn.errors import UsageError

_CONNECT_TIMEOUT = 3.0  # seconds


@contextmanager
def loading_weights(arch: str, file: str | None, url: str | None = None) -> Iterator[None]:
    """Turns what loading raises into one line; without a connection only the hub's local cache is asked.

    Args:
        arch: Whose weights are loaded, for the message.
        file: The file they are in; None for the hub.
        url: Where torch's hub finds them; None for timm's hub.

    Raises:
        UsageError: If they cannot be had.
    """
    from huggingface_hub import constants

    if file is None and url is None and not _is_reachable(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = True
    try:
        if file is None and url is not None and not _is_cached(url) and not _is_reachable(url):
            raise ConnectionError(url)
        yield
    except Exception as error:  # of the hub's client, of torch or of safetensors
        if file is not None:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"--model.weights {file}: does not hold the weights of {arch} ({reason})") from error
        raise UsageError(
            f"--model.weights pretrained: the weights of {arch} are not in the local cache and cannot be fetched; "
            "connect to the network, or give a file: --model.weights FILE.safetensors"
        ) from error


def require_common_names(net: nn.Module, file: str) -> None:
    """Refuses a file of weights none of which is named as one of the network's: timm would load nothing and go on.

    Raises:
        ValueError: If there is no common name.
    """
    from timm.models import load_state_dict

    if not net.state_dict().keys() & load_state_dict(file, device="cpu", weights_only=True).keys():
        raise ValueError("no name of a weight in common")


def _is_cached(url: str) -> bool:
    """Tells whether torch's hub has the file already."""
    return (Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]).is_file()


def _is_reachable(address: str) -> bool:
    if urllib.request.getproxies():
        return True  # only the request itself can tell
    parts = urlsplit(address)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 443), timeout=_CONNECT_TIMEOUT).close()
    except OSError:
        return False
    return True
