"""torch.compile gives what eager mode gives; inductor needs a C++ compiler."""

import shutil

import pytest
import torch

from lit_cnn.models import BUILDERS, create_model


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.debian, pytest.mark.slow])]
)
@pytest.mark.parametrize("arch", sorted(BUILDERS))
def test_compiled_equals_eager(arch: str, backend: str) -> None:
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("Debian's package g++ is not installed")
    torch.manual_seed(0)
    model = create_model(arch, num_classes=10, in_channels=1, image_size=32).eval()
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend=backend)(images), model(images), rtol=1e-4, atol=1e-5)
