"""Which regime to take, from trials: figures counted again by other means."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from statsmodels.stats.proportion import proportion_confint

from lit_cnn.evaluation.advice import Advice, Trial, default_sizes, names_of


def trial(regime: str, size: int, num_correct: int, seconds: float, num_val: int = 1000) -> Trial:
    return Trial("net", regime, size, num_correct, num_val, seconds, "run")  # type: ignore[arg-type]


def test_sizes_are_parts_of_what_there_is_with_five_images_a_class() -> None:
    assert default_sizes(16_000, 10) == [1000, 4000, 16_000]
    assert default_sizes(400, 10) == [100, 400]
    assert default_sizes(60, 10) == [60]


@pytest.mark.parametrize(
    ("trials", "num_images", "answer"),
    [
        (
            [trial("head_only", 500, 700, 3), trial("full", 500, 900, 300)],
            500,
            "Take full: 90.0 % [88.0, 91.7] on 1,000 val images in 300 s, with 500 training images. The other one "
            "is measurably worse.",
        ),
        (
            [trial("head_only", 500, 895, 3), trial("last_stages", 500, 700, 30), trial("full", 500, 900, 300)],
            1000,
            "Take full: 90.0 % [88.0, 91.7] on 1,000 val images in 300 s, with 500 training images. Nothing else here "
            "is measurably better and 1 of the 2 others is measurably worse; with 1,000 val images a difference under "
            "4.6 points is easily missed. Faster and not measurably worse: head_only, in 3.0 s, -0.5 points [-3.2, "
            "+2.2]. There are 1,000 training images: more of them may turn this round.",
        ),
        (
            # As good: the faster.
            [trial("head_only", 96, 11, 3, 12), trial("scratch", 96, 6, 2, 12), trial("full", 96, 11, 30, 12)],
            96,
            "Take head_only: 91.7 % [64.6, 98.5] on 12 val images in 3.0 s, with 96 training images. Nothing else here "
            "is measurably better; with 12 val images a difference under 66 points is easily missed.",
        ),
        (
            # So many images exclude that the faster one loses a point.
            [trial("head_only", 500, 90_000, 3, 100_000), trial("full", 500, 90_010, 300, 100_000)],
            500,
            "Take head_only: 90.00 % [89.81, 90.18] on 100,000 val images in 3.0 s, with 500 training images. full, "
            "the best on val, takes 100 times as long, and a loss of more than 1 point is excluded (-0.01 points "
            "[-0.27, +0.25]). Nothing else here is measurably better; with 100,000 val images a difference under 0.38 "
            "points is easily missed.",
        ),
    ],
)
def test_the_answer(trials: list[Trial], num_images: int, answer: str) -> None:
    advice = Advice(tuple(trials), num_images)
    assert advice.answer() == f"{answer} One seed each: a small difference may be the seed's."


def test_only_the_largest_size_counts() -> None:
    trials = (trial("head_only", 50, 999, 1), trial("full", 500, 800, 300))
    assert Advice(trials, 500).answer() == (
        "full: 80.0 % [77.4, 82.4] on 1,000 val images in 300 s, with 500 training images. There is nothing here to "
        "compare it with."
    )


def test_networks_are_named_where_there_are_several() -> None:
    trials = [trial("full", 500, 800, 300), replace(trial("full", 500, 700, 30), arch="timm/other")]
    assert names_of(trials) == ["net · full", "other · full"] and names_of(trials[:1]) == ["full"]


def test_rows_have_wilsons_interval() -> None:
    (row,) = Advice((trial("full", 500, 123, 4.56, num_val=345),), 500).records()
    low, high = proportion_confint(123, 345, method="wilson")
    assert (row["val_acc"], row["val_acc_low"], row["val_acc_high"]) == pytest.approx((123 / 345, low, high))
    assert (row["seconds"], row["images"], row["regime"], row["num_val"]) == (4.56, 500, "full", 345)


def test_the_report_opens_on_the_answer(tmp_path: Path) -> None:
    advice = Advice(
        tuple(trial(regime, size, 500 + size, 1) for regime in ("full", "scratch") for size in (50, 400)), 400, "<b>set"
    )
    page = advice.report(tmp_path).read_text("utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"advice.png", "trials.csv", "trials.json", "report.html"}
    with Image.open(tmp_path / "advice.png") as picture:
        assert picture.size == (1350, 810)
    body = page[page.index("<h1>") :]
    assert (
        body.index("Advice for &lt;b&gt;set</h1>") < body.index('<p class="answer">Take full') < body.index("<table>")
    )
    assert str(advice).startswith("Take full: 90.0 %")
    assert json.loads((tmp_path / "trials.json").read_text("utf-8"))["answer"] == advice.answer()
