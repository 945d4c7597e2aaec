"""Our networks leave as ONNX: exported once, onnxruntime gives torch's logits for batches of other sizes too."""

from pathlib import Path

import onnxruntime
import pytest
import torch

from lit_cnn.models import create_model
from tests.models.test_create_model import SHALLOWEST, SIZES


@pytest.mark.slow
@pytest.mark.parametrize("arch", SHALLOWEST)
# torch's exporter itself calls what torch deprecates.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_onnxruntime_gives_torchs_logits(arch: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = SIZES[arch]
    net = create_model(arch, num_classes=10, in_channels=1, image_size=size).eval()
    file = tmp_path / "net.onnx"
    images = torch.randn(2, 1, size, size)
    batch = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(net, (images,), file, input_names=["images"], dynamic_shapes=batch, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images = torch.randn(count, 1, size, size)
        (logits,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), net(images), rtol=1e-3, atol=1e-4)
