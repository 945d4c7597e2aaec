"""Which published weights of an architecture can be had on this machine."""

from lit_cnn.core.errors import UsageError
from lit_cnn.models import create_model, resolve_arch
from lit_cnn.training.weights import OFFLINE, expected_images, find_weights

_GIVE_A_FILE = "give `weights=FILE.safetensors`"

AUTO = "auto"
"""What stands for `available_weights` in a configuration until they are chosen."""


def available_weights(arch: str) -> tuple[str | None, str]:
    """Returns the published weights that can be had here, and in words why these.

    The hub is asked for a few seconds at most; what it gives is in its cache from then on.

    Args:
        arch: Name of the architecture.

    Returns:
        `pretrained` from its hub or the local cache, else `offline` if the package is installed, else None, and
        then what would give some, where anything would.

    Raises:
        UsageError: If there is no such architecture.
    """
    arch = resolve_arch(arch)
    name = arch.partition("/")[2]
    try:
        expected = expected_images(arch, "pretrained") or {}
        create_model(arch, num_classes=1000, in_channels=3, image_size=expected.get("image_size", 224), pretrained=True)
    except UsageError as error:
        if error.option == "arch":
            return None, f"nobody publishes weights of {name}"
        missing = "the hub's cannot be had"
    else:
        return "pretrained", "from its hub"
    package = OFFLINE.get(name.partition(".")[0], ("",))[0]
    try:
        find_weights(arch, "offline")
    except UsageError as error:
        if not package:
            return None, f"{missing}, and no package holds any of {name}; connect to the network, or {_GIVE_A_FILE}"
        return (
            None,
            f"{missing}, and {error.reason}; {error.remedy or 'install it'}, connect to the network, or {_GIVE_A_FILE}",
        )
    return "offline", f"ImageNet's, of an installed package; {missing}"
