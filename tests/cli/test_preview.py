"""`lit-cnn preview`: a picture that shows what training will see."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from lit_cnn.cli import main
from lit_cnn.core.resize import resize_and_center_crop
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.preview import preview
from tests.runs import CONFIGS, SHORT, image_folder, tracked_runs

FLIP = [{"class_path": "albumentations.HorizontalFlip", "init_args": {"p": 1.0}}]


def cells(picture: np.ndarray, rows: int, columns: int, side: int) -> np.ndarray:
    """The squares of the grid, `(rows, columns, side, side, 3)`, cut from its right and bottom."""
    step = side + 4
    margin, top = picture.shape[1] - columns * step, picture.shape[0] - rows * step
    return np.array(
        [
            [
                picture[top + step * row : top + step * row + side, margin + step * col : margin + step * col + side]
                for col in range(columns)
            ]
            for row in range(rows)
        ]
    )


def test_rows_are_images_and_columns_the_original_and_its_draws(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets", ["misty", "tigga", "neither"], per_class=8, size=120)
    data = ImageDataModule("image_folder", str(root), image_size=100, augment=FLIP)
    grid = cells(preview(data, num_images=4, num_draws=2), 4, 3, 100)
    shown = data.splits.train
    originals = {resize_and_center_crop(data.image_set.images[index], 100).tobytes(): index for index in shown}
    labels = [data.image_set.labels[originals[np.ascontiguousarray(row[0]).tobytes()]] for row in grid]
    assert labels == [0, 1, 2, 0], "every class in turn"
    for row in grid:
        np.testing.assert_array_equal(row[1], row[0][:, ::-1])
        np.testing.assert_array_equal(row[2], row[0][:, ::-1])


def test_draws_are_those_of_the_epochs_of_training() -> None:
    augment = [{"class_path": "albumentations.Rotate", "init_args": {"p": 1.0}}]
    data = ImageDataModule("digits", image_size=96, in_channels=3, augment=augment, seed=5)
    grid = cells(preview(data, num_images=1, num_draws=3), 1, 4, 96)
    index = int(data.splits.train[data.image_set.labels[data.splits.train] == 0][0])
    for epoch in range(3):
        np.testing.assert_array_equal(
            grid[0, epoch + 1], data.train_transform(data.image_set.images[index], 5, epoch, index)
        )


def test_draws_are_decoded_as_those_of_training(tmp_path: Path) -> None:
    for name in ("flower", "temple"):
        (tmp_path / "pets" / name).mkdir(parents=True)
    for number in range(8):
        large = Image.fromarray(load_sample_images().images[number % 2]).resize((900 + number, 600))
        large.save(tmp_path / "pets" / ("temple", "flower")[number % 2] / f"{number}.jpg", quality=95)
    whole, reduced = (
        ImageDataModule("image_folder", str(tmp_path / "pets"), image_size=96, augment=FLIP, reduced_decode=reduced)
        for reduced in (False, True)
    )
    first = int(np.flatnonzero(reduced.image_set.labels[reduced.splits.train] == 0)[0])
    views = [data.train_images().__getitems__([(0, first)])[0][0].permute(1, 2, 0).numpy() for data in (whole, reduced)]
    drawn = [cells(preview(data, 1, 1), 1, 2, 96)[0, 1] for data in (whole, reduced)]
    np.testing.assert_array_equal(drawn, views)
    assert (views[0] != views[1]).any()


def test_the_command_writes_the_same_picture_for_the_same_seed(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["preview", f"--config={CONFIGS / 'experiment' / 'lenet5_scratch_digits.yaml'}", "--num_images=3"]
    for output, seed in (("one.png", 0), ("again.png", 0), ("other.png", 1)):
        assert main([*arguments, f"--output={output}", f"--seed_everything={seed}"]) == 0
    one, again, other = (np.asarray(Image.open(name)) for name in ("one.png", "again.png", "other.png"))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert "one.png: " in capsys.readouterr().out
    assert not Path("mlruns").exists()


def test_a_run_keeps_the_picture_on_request() -> None:
    assert main(["fit", *SHORT, "--log_preview=true"]) == 0
    (run,) = tracked_runs(Path.cwd(), "fit")
    with Image.open(run.artifacts / "preview.png") as picture:
        assert picture.size[0] > 800
    assert (run.artifacts / "data" / "pixel_statistics.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--num_draws=0"], "--num_draws 0: give a whole number of at least 1"),
        (["--num_images=many"], "--num_images many: give a whole number"),
        (["--data.augmen=x"], "--data.augmen x: no such option; did you mean --data.augment"),
        (["--config=absent.yaml"], "--config absent.yaml: no such file"),
        (["--output"], "--output"),
        (["--output=."], "--output .: cannot be written (Is a directory); give another file"),
        (["--output=/proc/preview.png"], "--output /proc/preview.png: cannot be written ("),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preview", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("lit-cnn: error: ") and error.count("\n") == 1
    assert not Path("preview.png").exists()
