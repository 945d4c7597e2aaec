"""`make bench NAME=evaluation_scale`: time, disk and memory of an evaluation by the number of test images.

Six networks, ten crops (and one), 1,000 classes, with a greedy selection and temperatures on val, a tenth as many
images. The logits are synthetic: drawn where a network would give them, batch by batch; all that follows is what
`lit-cnn ensemble` runs: halves, files, the table, the report. Each size is a process of its own, whose largest memory
is taken; the drawing is timed too, and left out of the time of writing.

`--check` evaluates the same logits in float32 as well, and counts the test images that some row classifies otherwise.
50,000 images take 7 GiB of disk for the time of the measurement. About six minutes on two cores, `--check` not counted,
which is for 1,000 and 10,000 images (`--images 1000 10000 --check`).
"""

import argparse
import resource
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch

from lit_cnn.data.sources import ArrayImages, ImageSet
from lit_cnn.data.splits import Splits
from lit_cnn.evaluation import view_logits
from lit_cnn.evaluation.comparison import Comparison, evaluate
from lit_cnn.evaluation.predict import Member
from lit_cnn.evaluation.stored_logits import NetworkRecord
from lit_cnn.evaluation.table import Table
from lit_cnn.evaluation.view_logits import ViewLogits
from lit_cnn.tracking.queries import RunInfo
from tests.benchmarks.common import in_own_process, save_result, workplace

MEMBERS, VIEWS, CLASSES = 6, (1, 10), 1000
BATCH = 128
MOST_MEMORY = 4.0  # GiB, at 50,000 images
STORED = Path("logits")


def image_set_of(num_test: int, num_val: int) -> ImageSet:
    """Returns images without content, of which only names, hashes and classes count."""
    total = num_test + num_val
    return ImageSet(
        name="synthetic",
        source="nowhere",
        images=ArrayImages(np.broadcast_to(np.zeros((1, 8, 8, 3), np.uint8), (total, 8, 8, 3))),
        labels=np.random.default_rng(0).integers(0, CLASSES, total),
        class_names=tuple(f"class {number:04d}" for number in range(CLASSES)),
        paths=[f"{number:07d}.png" for number in range(total)],
        hashes=[f"{number:064d}" for number in range(total)],
        in_channels=3,
    )


class Network:
    """Draws logits as a network might give them: near the target's, unsure among related classes, other in each view.

    Args:
        labels: Of all images.
        seed: Networks of other seeds err on other images.
    """

    def __init__(self, labels: np.ndarray, seed: int) -> None:
        self.labels, self.seed = labels, seed
        self.noise = np.random.default_rng(seed).standard_normal((4096 + 10, CLASSES), np.float32)
        self.seconds = np.zeros(2)

    def draw(self, indices: np.ndarray, num_views: int) -> torch.Tensor:
        """Returns logits `(n, V, K)` float32 of some images: the same whenever it is asked."""
        started = _clocks()
        logits = np.empty((len(indices), num_views, CLASSES), np.float32)
        for place, index in enumerate(indices):
            generator = np.random.default_rng([self.seed, index])
            of_image = 1.5 * np.random.default_rng(index).standard_normal(CLASSES, np.float32)  # hard for all alike
            of_image += generator.standard_normal(CLASSES, np.float32)
            related = self.labels[index] // 10 * 10
            of_image[related : related + 10] += 3
            of_image[self.labels[index]] += 4.5
            first = int(generator.integers(4096))
            logits[place] = of_image + self.noise[first : first + num_views]
        self.seconds += _clocks() - started
        return torch.from_numpy(logits)


def members_of(images: ImageSet, splits: Splits) -> tuple[list[Member], list[Network]]:
    """Returns members whose networks only draw, each with the run that it would have."""
    data: Any = SimpleNamespace(image_set=images, splits=splits)
    members, networks = [], []
    for seed in range(MEMBERS):
        record = NetworkRecord(
            data={},
            class_names=list(images.class_names),
            preprocessing={"image_size": 8, "interpolation": "area", "crop_pct": 1.0},
            weights_digest=f"{seed:064d}",
            parameters=25_000_000,
            multiply_adds=4_000_000_000,
        )
        run = RunInfo(
            run_id=f"{seed:032d}",
            experiment_id="0",
            experiment_name="synthetic",
            name="synthetic",
            status="FINISHED",
            tags={"seed": str(seed), "arch": "synthetic"},
            params={"seed_everything": str(seed)},
            metrics={"best/val/acc": 0.5 - seed / 1000},
            artifact_uri="",
            start_time=0,
        )
        networks.append(Network(images.labels, seed))
        draws: Any = networks[-1]
        members.append(Member(record, data, partial(_itself, draws), run))
    return members, networks


def _itself(network: Any) -> Any:
    return network


def drawn(network: Network, views: Any, *_: Any) -> Iterator[torch.Tensor]:
    """Stands in for the forward passes."""
    num_views = sum(block.num_views for block in views.blocks)
    for start in range(0, len(views), BATCH):
        yield network.draw(views.indices[start : start + BATCH], num_views)


def table_of(members: list[Member], exact: bool) -> Table:
    """Evaluates members; computes and stores what is not stored."""
    write = view_logits.write_logits
    with (
        mock.patch.object(view_logits, "forward_batches", drawn),
        mock.patch.object(view_logits, "logits_of", _itself),
        mock.patch.object(view_logits, "write_logits", lambda *of: write(of[0], of[1], exact or of[2])),
    ):
        table = evaluate(members, Comparison(VIEWS, STORED, combine="greedy", calibration=True))
    return replace(table, load_model=None)


def store(members: list[Member], num_test: int, num_val: int) -> None:
    """Stores the logits of all members, as the first evaluation does."""
    with (
        mock.patch.object(view_logits, "forward_batches", drawn),
        mock.patch.object(view_logits, "logits_of", _itself),
    ):
        for member in members:
            for indices in (np.arange(num_test), np.arange(num_test, num_test + num_val)):
                found: ViewLogits = view_logits.view_logits(member, indices, VIEWS, STORED)
                assert found.parts


def measure(num_test: int, check: bool) -> dict[str, Any]:
    """Returns seconds (wall, processor), GiB on disk and GiB of memory of an evaluation of so many images."""
    shutil.rmtree(STORED, ignore_errors=True)
    num_val = num_test // 10
    images = image_set_of(num_test, num_val)
    splits = Splits(np.array([], np.int64), np.arange(num_test, num_test + num_val), np.arange(num_test))
    members, networks = members_of(images, splits)
    times = [_clocks()]
    store(members, num_test, num_val)
    times.append(_clocks())
    table = table_of(members, exact=False)
    times.append(_clocks())
    files = table.report_files("report")
    times.append(_clocks())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    (writing, evaluating, reporting), (writing_cpu, evaluating_cpu, reporting_cpu) = np.diff(times, axis=0).T
    drawing, drawing_cpu = np.sum([network.seconds for network in networks], axis=0)
    found: dict[str, Any] = {
        "images": num_test,
        "drawing_s": [drawing, drawing_cpu],
        "writing_s": [writing - drawing, writing_cpu - drawing_cpu],
        "evaluating_s": [evaluating, evaluating_cpu],
        "report_s": [reporting, reporting_cpu],
        "logits_gib": sum(file.stat().st_size for file in STORED.iterdir()) / 2**30,
        "float32_gib": 4 * CLASSES * MEMBERS * sum(VIEWS) * (num_test + num_val) / 2**30,
        "memory_gib": memory,
        "page_mib": files[-1].stat().st_size / 2**20,
        "report_mib": sum(file.stat().st_size for file in files) / 2**20,
        "rows": {f"{line.row.name}, {line.row.num_views}": line.accuracy.mean for line in table.lines},
    }
    if check:
        shutil.rmtree(STORED)
        found["changed"] = changed(table, table_of(members, exact=True))
    shutil.rmtree(STORED)
    return found


def _clocks() -> np.ndarray:
    """Returns seconds of the wall and of the processor: where others share the cores the second one counts."""
    return np.array([time.perf_counter(), time.process_time()])


def changed(table: Table, exact: Table) -> dict[str, Any]:
    """Returns in how many rows and of how many test images the decision is another than that of float32 logits."""
    assert table.predictions is not None and exact.predictions is not None
    rows = [(one.row, other.row) for one, other in zip(table.lines, exact.lines, strict=True)]
    differ = [int((one.correct != other.correct).sum()) for one, other in rows]
    nll = [
        abs(one.calibration.nll - other.calibration.nll)
        for one, other in rows
        if one.calibration is not None and other.calibration is not None
    ]
    return {
        "rows": len(differ),
        "images_right_or_wrong_otherwise": differ,
        "labels_of_the_last_way": int((table.predictions.labels != exact.predictions.labels).sum()),
        "largest_change_of_nll": max(nll),
    }


def main() -> None:
    """Prints the figures and writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 50_000], help="test images")
    parser.add_argument("--check", action="store_true", help="compare with float32, which takes the same time again")
    options = parser.parse_args()
    figures = []
    with workplace():
        for num_images in options.images:
            figures.append(in_own_process(measure, num_images, options.check))
            print(*(f"{name}: {value}" for name, value in figures[-1].items()), sep="\n")
    save_result("evaluation_scale", {"sizes": figures, "most_memory_gib": MOST_MEMORY})


if __name__ == "__main__":
    main()
