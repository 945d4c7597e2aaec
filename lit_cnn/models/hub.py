"""Pretrained weights from a hub, asked in seconds rather than minutes of retries."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lit_cnn.core.errors import UsageError

_TIMEOUT = 2.0  # seconds for the connection, and again for the answer


@contextmanager
def loading_weights(arch: str, url: str | None = None) -> Iterator[None]:
    """Turns what fetching raises into one line; without a connection only the local cache is asked.

    Args:
        arch: Whose weights are loaded, for the message.
        url: Where torch's hub finds them; None for timm's hub.

    Raises:
        UsageError: If they cannot be had.
    """
    from huggingface_hub import constants

    if url is None and not constants.HF_HUB_OFFLINE and not _is_reachable(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = True
    try:
        if url is not None and not _is_cached(url) and not _is_reachable(url):
            raise ConnectionError(url)
        yield
    except UsageError:
        raise
    except Exception as error:  # of the hub's client, of torch or of safetensors
        raise UsageError(
            "weights",
            "pretrained",
            f"the weights of {arch} are not in the local cache and cannot be fetched",
            "connect to the network, or give a file: `weights=FILE.safetensors`",
        ) from error


def _is_cached(url: str) -> bool:
    """Tells whether torch's hub has the file already."""
    return (Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]).is_file()


def _is_reachable(address: str) -> bool:
    """Tells whether anything answers there, through a proxy if there is one; an error page is an answer."""
    request = urllib.request.Request(address, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_TIMEOUT).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
