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
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from lit_cnn.evaluation.cost import Cost
from lit_cnn.evaluation.multi_crop import average_probabilities
from lit_cnn.evaluation.table import Row, Table, sentences
from lit_cnn.evaluation.table.accuracy import _positions, draw_accuracy
from lit_cnn.evaluation.table.pareto import draw_pareto
from lit_cnn.evaluation.table.reliability import draw_reliability
from lit_cnn.evaluation.table.wording import COLUMNS, GRID_COLUMNS, calibration_caption
from lit_cnn.reports.figures import save_png
from tests.evaluation.conftest import calibrated

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
    return Table.of(rows, rows[2], NUM_CLASSES)


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
    table = Table.of([*rows[:3], some], rows[0], NUM_CLASSES)
    assert table.gains == ()
    assert len(table.lines) == 4


def test_an_ensemble_of_one_equals_its_member(rows: list[Row]) -> None:
    one = replace(rows[0], kind="ensemble", name="ensemble of 1")
    table = Table.of([rows[0], one], rows[0], NUM_CLASSES)
    line = table.lines[1]
    assert line.difference == (0, 0, 0) and line.p_holm == 1 and line.images_needed is None
    # z^2 / (n + z^2), Tango's limit of two that never disagree.
    assert sentences(table)[1:] == [
        "No image tells the ensemble of 1 with 1 crop from the reference: a true difference above 0.64 points is "
        "excluded (95 %)."
    ]
    assert "[+0.00, +0.00]" not in table.to_html() + str(table) and "same images" in str(table)


def test_a_run_of_folds_counts_as_its_networks_and_no_dominated_row_is_on_the_front() -> None:
    cost = Cost(1, 10)
    right = np.arange(100) < 90
    net = Row("net", "member", 1, 2, 2, right, 0.9, cost=cost)
    folds = Row("5 folds", "member", 1, 2, 10, right, 0.9, cost=Cost(5, 50))
    table = Table.of([net, folds], net, 10)
    assert [columns[0].text(line) for columns in (COLUMNS[1:], GRID_COLUMNS) for line in table.lines] == [
        *("1 x 2", "5 x 2"),
        *("1", "5"),
    ]
    (front,) = [line for line in draw_pareto(table).axes[0].lines if line.get_label() == "Pareto front"]
    assert np.asarray(front.get_xdata()).tolist() == [10.0]


def test_the_caption_says_on_how_many_images_a_temperature_is_fitted() -> None:
    table = split(20, 4)
    assert "T: temperature fitted on val;" in calibration_caption(table)
    rows = [replace(line.row, val_counts=(40_000, 50_000)) for line in table.lines]
    large = Table.of(rows, rows[0], 1000)
    said = "T: temperature fitted on 10,000 of the 50,000 val images, spread over the classes;"
    assert said in calibration_caption(large) and "fitted on val;" in calibration_caption(Table.of(rows, rows[0], 10))


def test_rows_of_other_images_are_refused(rows: list[Row]) -> None:
    with pytest.raises(ValueError, match="not one of the rows"):
        Table.of(rows[1:], rows[0], NUM_CLASSES)
    for wrong in (rows[1].correct[:-1], rows[1].correct.astype(int)):
        with pytest.raises(ValueError, match="'net_1'"):
            Table.of([rows[0], replace(rows[1], correct=wrong)], rows[0], NUM_CLASSES)


def split(only_this: int, only_reference: int, num_images: int = 1000) -> Table:
    """A member against an ensemble that disagree on so many images."""
    counts = [num_images - only_this - only_reference, only_this, only_reference]
    reference = Row("net", "member", 1, 1, 1, np.repeat([True, False, True], counts), 0.9)
    ensemble = Row("ensemble of 3", "ensemble", 3, 10, 30, np.repeat([True, True, False], counts))
    return Table.of([reference, ensemble], reference, 10)


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
    table = Table.of(long, long[2], NUM_CLASSES)
    console = Console(width=100, file=io.StringIO())
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 100
    for line in table.lines:
        assert f"{100 * line.accuracy.mean:.2f} [{100 * line.accuracy.low:.2f}, {100 * line.accuracy.high:.2f}]" in text
    assert "…" not in text and "[bold]" in text
    assert "n = 600 test images, 4 classes" in text
    assert "3 x 2" in text and "reference" in text


def test_csv_and_json_hold_every_number(table: Table) -> None:
    records = list(csv.DictReader(io.StringIO(table.to_csv())))
    document = json.loads(table.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
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
    document = json.loads(Table.of(rows[:1], rows[0], NUM_CLASSES).to_json(), parse_constant=pytest.fail)
    assert document["members"][0]["std"] is None


def test_markdown_has_one_cell_a_column_whatever_the_name(rows: list[Row]) -> None:
    odd = [replace(row, name=f"a|b_c*d<i>{row.name}") for row in rows]
    text = Table.of(odd, odd[0], NUM_CLASSES).to_markdown()
    grid = [line for line in text.splitlines() if line.startswith("|")]
    assert len(grid) == 2 + len(rows)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in grid} == {11}
    assert r"a\|b\_c\*d\<i>net\_0" in grid[2]
    assert text.startswith(r"**Take the a\|b\_c\*d\<i>ensemble of 3 with 2 crops: ") and "\n- The reference is" in text


def test_html_is_one_file_with_table_and_picture(rows: list[Row]) -> None:
    odd = [replace(row, name=f"<script>&{row.name}") for row in rows]
    table = Table.of(odd, odd[0], NUM_CLASSES)
    page = table.to_html()
    root = ElementTree.fromstring(
        page.removeprefix("<!doctype html>")
        .replace('<meta charset="utf-8">', "")
        .replace('<meta name="viewport" content="width=device-width, initial-scale=1">', "")
    )
    cells = [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]
    assert len(cells) == 1 + len(rows) and {len(row) for row in cells} == {10}
    assert cells[1][0] == "<script>&net_0" and cells[1][5] == "reference"
    assert root.find(".//{http://www.w3.org/2000/svg}svg") is not None
    assert root.find(".//script") is None
    # No address is fetched: the only ones are names of XML vocabularies.
    assert not re.search(r"""(src|href)=["'](?!#)|url\((?!#)""", page)
    assert page == table.to_html()


@pytest.fixture(scope="module")
def full_table(rows: list[Row], logits: np.ndarray, targets: np.ndarray) -> Table:
    """The table with calibration, temperatures, a selected ensemble, and a row on a part of the images."""
    probabilities = [softmax(logits[member, 0], axis=1) for member in range(NUM_MEMBERS)]
    with_temperatures = [
        replace(row, calibration=calibrated(one, targets, (one[:300], targets[:300])))
        for row, one in zip(rows, [*probabilities, np.mean(probabilities, axis=0)], strict=False)
    ]
    part = np.arange(0, NUM_IMAGES, 3)
    greedy = Row("greedy ensemble", "ensemble", 2, 1, 2, rows[3].correct, val_accuracy=0.95, val_counts=(95, 100))
    greedy = replace(greedy, composition="2 x net_0, 1 x net_2")
    partial = Row("ensemble of 3", "ensemble", 3, 144, 432, rows[7].correct[part], part=part)
    return Table.of([*with_temperatures, greedy, *rows[4:], partial], with_temperatures[2], NUM_CLASSES)


def test_more_crops_are_compared_with_fewer_of_the_same_models(full_table: Table) -> None:
    by_key = {(line.row.name, line.row.num_views): line for line in full_table.lines}
    for name in ("net_0", "net_1", "net_2", "ensemble of 3"):
        one, two = by_key[name, 1], by_key[name, 2]
        assert one.marginal is None and two.fewer_views == 1 and two.marginal is not None
        assert two.marginal.mean == pytest.approx(two.accuracy.mean - one.accuracy.mean)
        per_image = two.row.correct.astype(int) - one.row.correct
        half_width = 1.96 * per_image.std(ddof=1) / math.sqrt(NUM_IMAGES)
        assert two.marginal.high - two.marginal.low == pytest.approx(2 * half_width, rel=0.1)
    assert any(
        re.search(r"^More crops, ensemble of 3: 1 to 2 .* points \[.*\], 2 to 144 ", said)
        for said in sentences(full_table)
    )


def test_a_row_on_a_part_is_compared_on_that_part_and_says_so(full_table: Table) -> None:
    line, part = full_table.lines[-1], np.arange(0, NUM_IMAGES, 3)
    of_two = full_table.lines[-2].row
    assert line.difference is not None and line.marginal is not None and of_two.name == "ensemble of 3"
    assert line.difference.mean == pytest.approx(line.row.correct.mean() - full_table.reference.correct[part].mean())
    assert line.marginal.mean == pytest.approx(line.row.correct.mean() - of_two.correct[part].mean()) == 0
    assert line.accuracy[1:] == pytest.approx(proportion_confint(line.row.correct.sum(), 200, method="wilson"))
    console = Console(width=100, file=io.StringIO())
    console.print(full_table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "3 x 144*" in text and "3 x 2*" not in text
    assert "*: on a stratified part of 200 test images (limit_144)." in " ".join(text.split())
    assert "The ensemble of 3 with 144 crops on 200 images" in " ".join(text.split())
    assert json.loads(full_table.to_json())["rows"][-1]["num_images"] == 200


def test_optimism_is_val_minus_test(full_table: Table) -> None:
    line = next(line for line in full_table.lines if line.row.name == "greedy ensemble")
    correct = int(line.row.correct.sum())
    # Newcombe 1998, method 10, by hand.
    low_val, high_val = proportion_confint(95, 100, method="wilson")
    low_test, high_test = proportion_confint(correct, NUM_IMAGES, method="wilson")
    mean, on_test = 0.95 - correct / NUM_IMAGES, correct / NUM_IMAGES
    low = mean - math.hypot(0.95 - low_val, high_test - on_test)
    high = mean + math.hypot(high_val - 0.95, on_test - low_test)
    assert line.optimism == pytest.approx((mean, low, high))
    said = next(sentence for sentence in sentences(full_table) if "was selected on val" in sentence)
    assert said.startswith(
        "The greedy ensemble with 1 crop was selected on val (2 x net_0, 1 x net_2): 95.00 % there, "
    )
    assert f"optimism {100 * mean:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]." in said


def test_calibration_is_a_table_of_its_own_in_every_format(full_table: Table) -> None:
    console = Console(width=100, file=io.StringIO())
    console.print(full_table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 100
    calibration = full_table.lines[0].row.calibration
    assert calibration is not None and calibration.scaled is not None
    cells = [f"{100 * calibration.ece:.2f}", f"{calibration.nll:.4f}", f"{calibration.scaled.temperature:.3f}"]
    for format_ in (text, full_table.to_markdown(), full_table.to_html()):
        assert all(cell in format_ for cell in cells)
    for record in (json.loads(full_table.to_json())["rows"][0], next(csv.DictReader(io.StringIO(full_table.to_csv())))):
        assert float(record["brier"]) == calibration.brier and float(record["ece"]) == calibration.ece
        assert float(record["temperature"]) == calibration.scaled.temperature
        assert float(record["nll_after"]) == calibration.scaled.nll
    assert json.loads(full_table.to_json())["rows"][-1]["ece"] is None
    grid = [line for line in full_table.to_markdown().splitlines() if line.startswith("|")]
    assert len(grid) == 2 * (2 + len(full_table.lines))


def test_a_row_without_a_temperature_says_why_in_every_format(
    full_table: Table, logits: np.ndarray, targets: np.ndarray
) -> None:
    rows = [line.row for line in full_table.lines]
    one = softmax(logits[0, 0], axis=1)
    right = softmax(50 * np.eye(NUM_CLASSES)[targets], axis=1)
    rows[0] = replace(rows[0], calibration=calibrated(one, targets, (right, targets)))
    rows[3] = replace(rows[3], calibration=calibrated(one, targets, (one[:1], targets[:1])))
    table = Table.of(rows, rows[2], NUM_CLASSES)
    said = (
        "No temperature is taken for net_0 with 1 crop: every val image is classified correctly, so the smaller T, the "
        "smaller the loss there."
    )
    assert said in sentences(table) and said not in sentences(full_table)
    assert "No temperature is taken for the ensemble of 3 with 1 crop: a single val image" in str(sentences(table))
    console = Console(width=100, file=io.StringIO())
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 100 and said in " ".join(text.split())
    assert "| all right | - | - |" in table.to_markdown()
    first, second, *_ = table.records()
    assert (first["temperature"], first["ece_after"], first["nll_after"]) == (None, None, None)
    assert (first["no_temperature"], second["no_temperature"]) == ("all right", None)
    # Nothing but refusals is a table of them too.
    without = [replace(row, calibration=rows[0].calibration) for row in rows]
    assert len(Table.of(without, without[2], NUM_CLASSES).text()) == len(table.text()) - 1  # a sentence less
    assert draw_reliability(table).axes[1].get_title() == "after the temperature"


def test_reliability_picture_has_a_second_panel_after_the_temperature(full_table: Table, tmp_path: Path) -> None:
    save_png(draw_reliability(full_table), tmp_path / "both.png")
    without = [
        replace(line.row, calibration=line.row.calibration and replace(line.row.calibration, scaled=None))
        for line in full_table.lines
    ]
    save_png(draw_reliability(Table.of(without, without[2], NUM_CLASSES)), tmp_path / "one.png")
    for name, width in (("both", 1440), ("one", 750)):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.size == (width, 750)
            # The colours of the reference and of the ensemble are in it.
            colors = {color for _, color in image.convert("RGB").getcolors(maxcolors=1 << 20) or []}
            assert {(0xC2, 0x41, 0x0C), (0x0B, 0x5C, 0xAD)} <= colors


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
    table = Table.of(rows, rows[0], 10)
    path = tmp_path / "new" / "accuracy.png"
    save_png(draw_accuracy(table), path)
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


def test_the_grid_is_googlenets_table(rows: list[Row], logits: np.ndarray, targets: np.ndarray) -> None:
    part = np.arange(0, NUM_IMAGES, 2)
    grid = []
    for num_models, num_views in ((1, 1), (1, 2), (3, 1), (3, 2)):
        correct = predicted(logits[:num_models, :num_views]) == targets
        grid.append(Row("best", "ensemble", num_models, num_views, num_models * num_views, correct))
    grid[3] = replace(grid[3], correct=grid[3].correct[part], part=part, num_views=144, forward_passes=432)
    table = Table.of(rows, rows[2], NUM_CLASSES, grid)
    document = json.loads(table.to_json())["grid"]
    base = document[0]
    assert base["over_base"] is None and [cell["forward_passes"] for cell in document] == [1, 2, 3, 432]
    for cell, row in zip(document, grid, strict=True):
        assert cell["accuracy"] == pytest.approx(accuracy_score(np.ones(len(row.correct)), row.correct))
    assert document[2]["over_base"]["mean"] == pytest.approx(document[2]["accuracy"] - base["accuracy"])
    assert document[3]["over_base"]["mean"] == pytest.approx(grid[3].correct.mean() - grid[0].correct[part].mean())
    low, high = proportion_confint(NUM_IMAGES - grid[2].correct.sum(), NUM_IMAGES, method="wilson")
    error = f"{100 - 100 * grid[2].correct.mean():.2f} [{100 * low:.2f}, {100 * high:.2f}]"
    change = -100 * document[2]["over_base"]["mean"]
    (line,) = (line for line in table.to_markdown().splitlines() if line.startswith("| 3 | 1 |"))
    assert f"| {error} | {change:+.2f} [" in line
    assert "| 3 | 144\\* | 432 |" in table.to_markdown() and "<td>144*</td>" in table.to_html()
    assert "part of 300 test images (limit_144)" in table.to_markdown()
