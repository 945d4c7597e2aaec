"""Which regime to take, from trials: figures counted again by other means."""

import re
from pathlib import Path

from PIL import Image
from statsmodels.stats.proportion import proportion_confint

from lit_cnn.evaluation.advice import Trial, default_sizes, plot_trials, recommend, rows_of


def trial(regime: str, size: int, num_correct: int, seconds: float, num_val: int = 1000) -> Trial:
    return Trial("net", regime, size, num_correct, num_val, seconds, "run")  # type: ignore[arg-type]


def test_sizes_are_parts_of_what_there_is_with_five_images_a_class() -> None:
    assert default_sizes(16_000, 10) == [1000, 4000, 16_000]
    assert default_sizes(400, 10) == [100, 400]
    assert default_sizes(60, 10) == [60]


def test_the_best_is_taken_where_val_tells_it_from_the_others() -> None:
    text = recommend([trial("head_only", 500, 700, 3), trial("full", 500, 900, 300)], 500)
    assert text.startswith("With 500 training images take net, full: 90.0 % [88.0, 91.7] in 300 s, the best on val.")
    assert "worse than the best: net, head_only, -20.0 points" in text


def test_the_cheapest_is_taken_where_val_does_not() -> None:
    trials = [trial("head_only", 500, 895, 3), trial("last_stages", 500, 899, 30), trial("full", 500, 900, 300)]
    text = recommend(trials, 1000)
    assert text.startswith("With 500 training images take net, head_only: 89.5 %")
    assert "The best on val is net, full" in text and "1,000 val images do not tell them apart (+0.5 points" in text
    assert "100.0 times as long" in text and "not all of the 1,000 images" in text


def test_only_the_largest_size_counts() -> None:
    trials = [trial("head_only", 50, 999, 1), trial("full", 500, 800, 300)]
    assert "take net, full" in recommend(trials, 500)


def test_rows_have_wilsons_interval() -> None:
    (row,) = rows_of([trial("full", 500, 123, 4.56, num_val=345)])
    low, high = proportion_confint(123, 345, method="wilson")
    assert (row["val_acc"], row["val_acc_low"], row["val_acc_high"]) == (
        round(100 * 123 / 345, 2),
        round(100 * low, 2),
        round(100 * high, 2),
    )
    assert (row["seconds"], row["images"], row["regime"]) == (4.6, 500, "full")


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    trials = [trial(regime, size, 500 + size, 1) for regime in ("full", "scratch") for size in (50, 400)]
    plot_trials(trials, tmp_path / "advice.png")
    with Image.open(tmp_path / "advice.png") as picture:
        assert picture.size == (1350, 810)
    assert not re.search("tmp", " ".join(path.name for path in tmp_path.iterdir()))
