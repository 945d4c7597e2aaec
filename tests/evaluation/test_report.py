"""The table from raw logits, each number by other means; then each format read back."""

import csv
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from lit_cnn.evaluation.multi_crop import average_probabilities
from lit_cnn.evaluation.report import (
    Row,
    Table,
    build_table,
    plot_accuracy,
    render,
    sentences,
    to_csv,
    to_html,
    to_json,
    to_markdown,
)
from lit_cnn.evaluation.report.figure import _positions

NUM_IMAGES, NUM_CLASSES, NUM_MEMBERS = 600, 4, 3


@pytest.fixture(scope="module")
def targets() -> np.ndarray:
    return np.random.default_rng(0).integers(0, NUM_CLASSES, NUM_IMAGES)


@pytest.fixture(scope="module")
def logits(targets: np.ndarray) -> np.ndarray:
    """`(M, V, N, K)`: three members that err apart, each with two views."""
    generator = np.random.default_rng(1)
    per_member = generator.normal(scale=1.3, size=(NUM_MEMBERS, 1, NUM_IMAGES, NUM_CLASSES))
    per_view = generator.normal(scale=0.6, size=(NUM_MEMBERS, 2, NUM_IMAGES, NUM_CLASSES))
    return per_member + per_view + 2.5 * np.eye(NUM_CLASSES)[targets]


@pytest.fixture(scope="module")
def rows(logits: np.ndarray, targets: np.ndarray) -> list[Row]:
    rows = []
    for num_views in (1, 2):
        used = logits[:, :num_views]
        for member in range(NUM_MEMBERS):
            correct = average_probabilities(used[member]).argmax(axis=1) == targets
            rows.append(
                Row(f"net_{member}", "member", 1, num_views, num_views, correct, 0.8 + member / 100, f"{member}")
            )
        together = average_probabilities(used.reshape(-1, NUM_IMAGES, NUM_CLASSES)).argmax(axis=1) == targets
        rows.append(Row("ensemble of 3", "ensemble", 3, num_views, 3 * num_views, together))
    return rows


@pytest.fixture(scope="module")
def table(rows: list[Row]) -> Table:
    return build_table(rows, rows[2], NUM_CLASSES)


def predicted(logits: np.ndarray) -> np.ndarray:
    """The class of the mean of softmax over the views and members `(…, N, K)`, by hand."""
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return probabilities.reshape(-1, NUM_IMAGES, NUM_CLASSES).mean(axis=0).argmax(axis=1)


def test_accuracies_are_those_of_the_logits(table: Table, logits: np.ndarray, targets: np.ndarray) -> None:
    expected = []
    for num_views in (1, 2):
        of_members = [predicted(logits[member, :num_views]) for member in range(NUM_MEMBERS)]
        for labels in [*of_members, predicted(logits[:, :num_views])]:
            expected.append(accuracy_score(targets, labels))
    assert [line.accuracy.mean for line in table.lines] == pytest.approx(expected, abs=1e-12)
    for line, accuracy in zip(table.lines, expected, strict=True):
        limits = proportion_confint(round(accuracy * NUM_IMAGES), NUM_IMAGES, method="wilson")
        assert line.accuracy[1:] == pytest.approx(limits, abs=1e-12)


def test_differences_are_paired_with_the_reference(table: Table, rows: list[Row]) -> None:
    generator = np.random.default_rng(2)
    for line in table.lines:
        if line.row is rows[2]:
            assert line.difference is None and line.mcnemar is None and line.p_holm is None
            continue
        difference = line.row.correct.astype(int) - rows[2].correct.astype(int)
        means = generator.choice(difference, (10_000, NUM_IMAGES)).mean(axis=1)
        assert line.difference is not None
        assert line.difference.mean == pytest.approx(difference.mean())
        # Both are multiples of one image, and quantiles of different draws may fall on neighbouring ones.
        assert line.difference[1:] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1.01 / NUM_IMAGES)


def test_p_values_are_exact_and_adjusted_over_the_table(table: Table, rows: list[Row]) -> None:
    tested = [line for line in table.lines if line.row is not rows[2]]
    expected = []
    for line in tested:
        better = int(np.sum(line.row.correct > rows[2].correct))
        worse = int(np.sum(line.row.correct < rows[2].correct))
        expected.append(binomtest(min(better, worse), better + worse).pvalue)
        assert line.mcnemar is not None and line.mcnemar[:2] == (better, worse)
    assert [line.mcnemar.p_value for line in tested if line.mcnemar] == pytest.approx(expected)
    assert [line.p_holm for line in tested] == pytest.approx(multipletests(expected, method="holm")[1])


def test_members_and_gain(table: Table, rows: list[Row]) -> None:
    for summary, gain, own in zip(table.members, table.gains, (rows[:4], rows[4:]), strict=True):
        accuracies = [row.correct.mean() for row in own[:3]]
        mean = sum(accuracies) / 3
        spread = math.sqrt(sum((accuracy - mean) ** 2 for accuracy in accuracies) / 2)
        assert summary.accuracy == pytest.approx((3, mean, spread))
        assert gain.row is own[3]
        assert gain.difference.mean == pytest.approx(own[3].correct.mean() - mean)
        per_image = own[3].correct - np.mean([row.correct for row in own[:3]], axis=0)
        half_width = 1.96 * per_image.std(ddof=1) / math.sqrt(NUM_IMAGES)
        assert gain.difference.high - gain.difference.low == pytest.approx(2 * half_width, rel=0.05)


def test_an_ensemble_of_some_members_claims_no_gain_over_all(rows: list[Row]) -> None:
    some = replace(rows[3], num_models=2, name="ensemble of 2", forward_passes=2)
    table = build_table([*rows[:3], some], rows[0], NUM_CLASSES)
    assert table.gains == ()
    assert len(table.lines) == 4


def test_an_ensemble_of_one_equals_its_member(rows: list[Row]) -> None:
    one = replace(rows[0], kind="ensemble", name="ensemble of 1")
    table = build_table([rows[0], one], rows[0], NUM_CLASSES)
    line = table.lines[1]
    assert line.difference == (0, 0, 0) and line.p_holm == 1 and line.images_needed is None
    assert "no difference can be claimed (+0.00 points [+0.00, +0.00], Holm-adjusted p = 1.00)." in sentences(table)[1]


def test_rows_of_other_images_are_refused(rows: list[Row]) -> None:
    with pytest.raises(ValueError, match="not one of the rows"):
        build_table(rows[1:], rows[0], NUM_CLASSES)
    for wrong in (rows[1].correct[:-1], rows[1].correct.astype(int)):
        with pytest.raises(ValueError, match="'net_1'"):
            build_table([rows[0], replace(rows[1], correct=wrong)], rows[0], NUM_CLASSES)


def split(only_this: int, only_reference: int, num_images: int = 1000) -> Table:
    """A member against an ensemble that disagree on so many images."""
    counts = [num_images - only_this - only_reference, only_this, only_reference]
    reference = Row("net", "member", 1, 1, 1, np.repeat([True, False, True], counts), 0.9)
    ensemble = Row("ensemble of 3", "ensemble", 3, 10, 30, np.repeat([True, True, False], counts))
    return build_table([reference, ensemble], reference, 10)


def test_sentences_say_better_worse_or_that_nothing_can_be_said() -> None:
    assert sentences(split(20, 4))[0] == "The reference is the member best on val (90.00 % there): net with 1 crop."
    start = "The ensemble of 3 with 10 crops"
    number = r"[+-]\d+\.\d\d"
    better, worse, same = (sentences(split(*counts))[1] for counts in [(20, 4), (4, 20), (20, 15)])
    limits = rf"\[{number}, {number}\]"
    assert re.fullmatch(
        rf"{start} is \+1\.60 points {limits} over the member best on val; Holm-adjusted p = 0\.002\.", better
    )
    assert re.fullmatch(
        rf"{start} is -1\.60 points {limits} against the member best on val, so worse; Holm-adjusted p = 0\.002\.",
        worse,
    )
    # Connor 1987: psi = 0.035, delta = 0.005 gives 10,983.
    assert re.fullmatch(
        rf"{start} against the member best on val: no difference can be claimed \(\+0\.50 points {limits}, "
        r"Holm-adjusted p = 0\.50\)\. A true difference of this size would take about 11,000 test images\.",
        same,
    )
    assert "p < 0.001" in sentences(split(40, 4))[1]
    assert "(+0.00 points" in sentences(split(20, 21, num_images=100_000))[1]  # not -0.00


def test_more_crops_of_the_reference_get_their_sentence(table: Table) -> None:
    said = sentences(table)
    assert sum(sentence.startswith("net_2 with 2 crops ") for sentence in said) == 1
    assert not any(sentence.startswith("net_1") for sentence in said)
    assert re.search(r"^Members with 2 crops: mean \d\d\.\d\d ± \d\.\d\d % \(standard deviation\), n = 3\.$", said[-1])


def test_terminal_fits_100_columns_and_keeps_numbers_whole(rows: list[Row]) -> None:
    long = [replace(row, name=f"timm/[bold]{row.name}_last_stages_fashion_mnist_strong_augmentation") for row in rows]
    table = build_table(long, long[2], NUM_CLASSES)
    console = Console(width=100, file=io.StringIO())
    render(table, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 100
    for line in table.lines:
        assert f"{100 * line.accuracy.mean:.2f} [{100 * line.accuracy.low:.2f}, {100 * line.accuracy.high:.2f}]" in text
    assert "…" not in text and "[bold]" in text
    assert "n = 600 test images, 4 classes" in text
    assert "3 x 2" in text and "reference" in text


def test_csv_and_json_hold_every_number(table: Table) -> None:
    records = list(csv.DictReader(io.StringIO(to_csv(table))))
    document = json.loads(to_json(table), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document["num_images"] == NUM_IMAGES and document["num_classes"] == NUM_CLASSES
    assert document["sentences"] == sentences(table)
    assert [row["is_reference"] for row in document["rows"]] == [index == 2 for index in range(8)]
    for record, row, line in zip(records, document["rows"], table.lines, strict=True):
        assert record["name"] == row["name"] == line.row.name
        assert float(record["accuracy"]) == row["accuracy"] == line.accuracy.mean
        expected = None if line.difference is None else line.difference.low
        assert row["difference_low"] == expected
        assert record["difference_low"] == ("" if expected is None else str(expected))
        assert row["p_holm"] == line.p_holm and row["run_id"] == line.row.run_id
    assert [gain["mean"] for gain in document["gains_over_members_mean"]] == [g.difference.mean for g in table.gains]


def test_json_of_a_single_member_has_no_nan(rows: list[Row]) -> None:
    document = json.loads(to_json(build_table(rows[:1], rows[0], NUM_CLASSES)), parse_constant=pytest.fail)
    assert document["members"][0]["std"] is None


def test_markdown_has_one_cell_a_column_whatever_the_name(rows: list[Row]) -> None:
    odd = [replace(row, name=f"a|b_c*d<i>{row.name}") for row in rows]
    text = to_markdown(build_table(odd, odd[0], NUM_CLASSES))
    grid = [line for line in text.splitlines() if line.startswith("|")]
    assert len(grid) == 2 + len(rows)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in grid} == {10}
    assert r"a\|b\_c\*d\<i>net\_0" in grid[2]
    assert text.startswith("- The reference is")


def test_html_is_one_file_with_table_and_picture(rows: list[Row]) -> None:
    odd = [replace(row, name=f"<script>&{row.name}") for row in rows]
    table = build_table(odd, odd[0], NUM_CLASSES)
    page = to_html(table)
    root = ElementTree.fromstring(
        page.removeprefix("<!doctype html>")
        .replace('<meta charset="utf-8">', "")
        .replace('<meta name="viewport" content="width=device-width, initial-scale=1">', "")
    )
    cells = [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]
    assert len(cells) == 1 + len(rows) and {len(row) for row in cells} == {9}
    assert cells[1][0] == "<script>&net_0" and cells[1][5] == "reference"
    assert root.find(".//{http://www.w3.org/2000/svg}svg") is not None
    assert root.find(".//script") is None
    # No address is fetched: the only ones are names of XML vocabularies.
    assert not re.search(r"""(src|href)=["'](?!#)|url\((?!#)""", page)
    assert page == to_html(table)


@pytest.mark.parametrize("num_members", [1, 2, 9, 10, 11, 12])
def test_picture_is_drawn_and_no_two_lines_share_a_place(num_members: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(num_members)
    rows = [
        Row(f"net_{member}", "member", 1, num_views, num_views, generator.random(200) < 0.8)
        for num_views in (1, 10)
        for member in range(num_members)
    ]
    rows += [
        Row("$all$", "ensemble", num_members, num_views, num_members * num_views, generator.random(200) < 0.9)
        for num_views in (1, 10)
    ]
    table = build_table(rows, rows[0], 10)
    path = tmp_path / "new" / "accuracy.png"
    plot_accuracy(table, path)
    with Image.open(path) as image:
        assert image.size == (1350, 810)
        assert len(image.convert("RGB").getcolors(maxcolors=1 << 20) or []) > 50
    assert list(path.parent.iterdir()) == [path]
    positions = _positions(table.lines)
    passes = np.array([row.forward_passes for row in rows])
    assert np.diff(np.sort(positions)).min() > 0.004
    assert np.abs(positions - np.log10(passes)).max() <= 0.08
    between = positions[passes == 1].max() < positions[passes == 10].min()
    assert between
    # A larger number of passes is never drawn left of a smaller one.
    for low in np.unique(passes):
        assert positions[passes <= low].max() < min(positions[passes > low], default=math.inf)
