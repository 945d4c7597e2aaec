"""`make bench NAME=reduced_decode`: large JPEGs to augmented 224 px, with and without --data.reduced_decode.

Sixty-four JPEGs of 4000 x 3000 px, as of a telephone: enlarged parts of the two photographs of scikit-learn, for the
time to decode one depends on its number of pixels more than on what they show. Random resized crop, mirror, rotation
and jitter of colour; images per second. It ends with how alike the views of both sides are.
"""

import argparse
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import numpy as np
from PIL import Image

from tests.benchmarks.augment_jpeg import images_per_second, our_loader, write_photographs
from tests.benchmarks.common import interleave, report, save_result

WIDTH, HEIGHT = 4000, 3000
REDUCED, WHOLE = "--data.reduced_decode true", "whole images"


def main() -> None:
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--num_workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photographs(root, options.images)
        for file in root.rglob("*.jpg"):
            Image.open(file).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(file, quality=90)
        loaders = {
            REDUCED: our_loader(root, options.num_workers, reduced_decode=True),
            WHOLE: our_loader(root, options.num_workers, prepared="off"),
        }
        pairs = zip(*loaders.values(), strict=True)
        alike = [
            np.corrcoef(one.ravel(), other.ravel())[0, 1]
            for (a, _), (b, _) in pairs
            for one, other in zip(a.numpy(), b.numpy(), strict=True)
        ]
        sides = {name: partial(images_per_second, loader, 1) for name, loader in loaders.items()}
        measured = interleave(sides, options.rounds)
    title = f"{__doc__.splitlines()[0]} {options.num_workers} workers"
    figures = report(title, measured, "images per second", (REDUCED, WHOLE), 1.0)
    print(f"correlation of the views' pixels: median {statistics.median(alike):.4f}, least {min(alike):.4f}")
    save_result("reduced_decode", {**figures, "correlations": [float(each) for each in alike]})


if __name__ == "__main__":
    main()
