"""`make bench NAME=export_latency`: one image at a time through ResNet-18 at 224 px, as PyTorch and as exported.

From a uint8 image to probabilities, milliseconds, interleaved rounds in one process. The weights are random: they do
not change how long a float takes. OpenVINO computes in bfloat16 where the processor does, and elsewhere in float32.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from lit_cnn.exports.formats import write_export
from lit_cnn.exports.network import CombinedNet
from lit_cnn.portable import INPUT, OUTPUT, ModelCard, load_graph, needed_package
from lit_cnn.training.classifier import LitClassifier
from tests.benchmarks.common import interleave, report, save_result

EAGER = "PyTorch eager, float32"
TARGET = 4.0


def milliseconds(run: Callable[[np.ndarray], np.ndarray], image: np.ndarray, seconds: float) -> float:
    """Returns the median latency of one image, over about that many seconds after three that do not count."""
    for _ in range(3):
        run(image)
    taken = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        run(image)
        taken.append(time.perf_counter() - started)
    return 1000 * statistics.median(taken)


def main() -> None:
    """Prints latencies and their ratio to PyTorch for each way to run the export, as tables; writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="about that long for each side of a round")
    options = parser.parse_args()
    model = LitClassifier(arch="resnet18", num_classes=1000, in_channels=3, image_size=224).eval()
    member = {"weight": 1.0}
    names = [str(label) for label in range(1000)]
    card = ModelCard("", names, 224, 3, "area", 1, 1.0, "mean", [member], {})
    net = CombinedNet([model], card).eval()
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 224, 224), dtype=np.uint8)

    def eager(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return net(torch.from_numpy(images)).numpy()

    openvino = needed_package("openvino", "format", "openvino")
    has_bf16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    with tempfile.TemporaryDirectory() as place:
        runs: dict[str, Callable[[np.ndarray], np.ndarray]] = {EAGER: eager}
        for format, name in (("onnx", "ONNX Runtime, float32"), ("openvino", "OpenVINO, float32")):
            folder = Path(place, format)
            folder.mkdir()
            write_export(folder, net, card, format)
            runs[name] = load_graph(folder).probabilities
        if has_bf16:
            compiled = openvino.Core().compile_model(Path(place, "openvino", "model.xml"), "CPU")
            runs["OpenVINO, bfloat16"] = lambda images: compiled({INPUT: images})[OUTPUT]
        expected = eager(image)
        for name, run in runs.items():
            print(f"{name}: largest difference of a probability {np.abs(run(image) - expected).max():.1g}")
        measured = interleave(
            {name: partial(milliseconds, run, image, options.seconds) for name, run in runs.items()}, options.rounds
        )
    if not has_bf16:
        print(
            "no bfloat16 in this processor: OpenVINO's default precision is float32 here, and the target is for others"
        )
    title = "ResNet-18, 224 px, one image"
    pairs = [{one: measured[one] for one in (EAGER, name)} for name in list(runs)[1:]]
    figures = [report(title, pair, "milliseconds", (EAGER, list(pair)[1]), TARGET) for pair in pairs]
    save_result("export_latency", figures)


if __name__ == "__main__":
    main()
