"""torch.compile gives what eager mode gives; inductor needs a C++ compiler."""

import shutil

import pytest
import torch

from lit_cnn.models import create_model
from tests.models.test_create_model import SHALLOWEST, SIZES

# Of these g++ compiles for a minute each; that their graphs are whole and right, aot_eager tells.
LARGE = ("lit/googlenet", "lit/residual50")
INDUCTOR = [
    pytest.param(arch, "inductor", marks=[pytest.mark.debian, pytest.mark.slow])
    for arch in SHALLOWEST
    if arch not in LARGE
]


@pytest.mark.parametrize(("arch", "backend"), [*((arch, "aot_eager") for arch in SHALLOWEST), *INDUCTOR])
def test_compiled_equals_eager(arch: str, backend: str) -> None:
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("Debian's package g++ is not installed")
    torch.compiler.reset()  # else those compiled before count towards a limit, beyond which all is silently eager
    torch.manual_seed(0)
    size = SIZES[arch]
    model = create_model(arch, num_classes=10, in_channels=1, image_size=size).eval()
    images = torch.randn(2, 1, size, size)
    with torch.no_grad():
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-5)
