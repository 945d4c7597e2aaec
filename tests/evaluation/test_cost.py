"""Costs: counted by hand where they are counts, and measured on networks of which one is known to be slower."""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lit_cnn.evaluation.cost import Cost, Latency, Network, Timing, cost_of, network_of, passes_needed, time_networks
from lit_cnn.evaluation.table import Row, Table
from lit_cnn.evaluation.table.frontier import decision_of, pareto_front
from lit_cnn.evaluation.table.pareto import draw_pareto
from lit_cnn.reports.figures import save_png
from lit_cnn.training.classifier import LitClassifier


def test_a_network_is_counted_by_hand() -> None:
    model = LitClassifier("lenet5", num_classes=10, in_channels=1, image_size=32).eval()
    convolutions = 28 * 28 * 6 * 25 + 10 * 10 * 16 * 6 * 25
    linear = 400 * 120 + 120 * 84 + 84 * 10
    parameters = 6 * 26 + 16 * (6 * 25 + 1) + 401 * 120 + 121 * 84 + 85 * 10
    assert network_of(model) == Network(parameters, convolutions + linear)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_costs_add_up_over_networks_and_views() -> None:
    generator = np.random.default_rng(0)
    networks = [Network(10, 100), Network(20, 200), Network(40, 400)]
    seconds: Mapping[int, np.ndarray] = {size: generator.random((37, 3)) for size in (10, 64)}
    cost = cost_of(networks, np.array([0, 2]), 10, Timing(seconds, "a machine"))
    assert (cost.parameters, cost.multiply_adds, cost.machine) == (50, 5000, "a machine")
    sums = {1: sorted(a + c for a, _, c in seconds[10]), 32: sorted(5 * (a + c) for a, _, c in seconds[64])}
    for batch, expected in sums.items():
        low, high = expected[34], expected[35]  # the 0.95 * 36 = 34.2nd of the 37, counted from 0
        assert cost.latency[batch] == pytest.approx((expected[18], low + 0.2 * (high - low), 37))
    assert cost_of(networks, np.array([1]), 1) == Cost(20, 200)


@pytest.mark.parametrize(
    ("num_views", "num_images", "expected"), [(1, 1, (1, 1)), (1, 32, (32, 1)), (10, 32, (64, 5)), (144, 1, (64, 2.25))]
)
def test_large_batches_go_in_several_passes(num_views: int, num_images: int, expected: tuple[int, float]) -> None:
    assert passes_needed(num_views, num_images) == expected


def test_the_slower_network_is_measured_as_slower() -> None:
    # Two threads wait for each other in every layer; on a busy machine that alone is longer than 30 ms.
    torch.set_num_threads(1)
    quick, slow = (LitClassifier("lenet5", num_classes=10, in_channels=1, image_size=32).eval() for _ in range(2))
    sizes = []

    def sleep(_: torch.nn.Module, arguments: tuple[torch.Tensor]) -> None:
        sizes.append(len(arguments[0]))
        time.sleep(0.03)

    slow.net.register_forward_pre_hook(sleep)
    timing = time_networks([quick, slow], [1])
    assert set(sizes) == timing.seconds.keys() == {1, 32}
    for size, seconds in timing.seconds.items():
        num_rounds = len(seconds)
        assert seconds.shape == (num_rounds, 2) and 3 <= num_rounds <= 100
        assert sizes.count(size) == num_rounds + 3  # the warm-up is not among them
        assert seconds[:, 0].min() < 0.03 <= seconds[:, 1].min()
    assert f"{torch.get_num_threads()} thread" in timing.machine
    latency = cost_of([Network(1, 1)] * 2, np.array([0, 1]), 1, timing).latency[1]
    assert 0.03 <= latency.median <= latency.p95


NUM_IMAGES = 300


def row(name: str, correct: np.ndarray, multiply_adds: int, **more: object) -> Row:
    kind = "ensemble" if "ensemble" in name else "member"
    return Row(name, kind, 1, 1, 1, correct, cost=Cost(1000, multiply_adds), **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Networks that are right on the first 98, 97, 80 and 60 % of the images, and an ensemble that is so on 99 %."""
    places = np.arange(NUM_IMAGES) / NUM_IMAGES
    tiny, small, middle, large = (places < share for share in (0.6, 0.97, 0.8, 0.98))
    return [
        row("large", large, 500, val_accuracy=0.9),
        row("ensemble of 4", places < 0.99, 1100),
        row("tiny", tiny, 10, val_accuracy=0.6),
        row("small", small, 100, val_accuracy=0.9),
        row("small twin", places < 0.972, 101, val_accuracy=0.95),
        row("middle", middle, 300, val_accuracy=0.8),
    ]


def test_the_row_to_take_is_the_same_in_sentence_table_and_picture(rows: list[Row]) -> None:
    """The ensemble and small twin are not told from the best on val; small twin costs a fifth of it."""
    table = Table.of(rows, rows[0], 10)
    found = decision_of(table)
    assert found.chosen is table.lines[0] and not found.is_better and found.num_others == 5
    assert [line.row.name for line in found.worse] == ["tiny", "middle"]
    # Of the two of about the same cost the one that is better on val.
    assert found.cheaper is not None and found.cheaper.row is table.lines[4]
    assert found.cheaper.cost_ratio == pytest.approx(101 / 500)
    assert found.cheaper.difference.mean == pytest.approx(rows[4].correct.mean() - rows[0].correct.mean())
    assert table.answer().startswith("Take large: 98.0 % [95.7, 99.1] on 300 test images. Nothing else here is ")
    assert "2 of the 5 others are measurably worse" in table.answer()
    assert "Cheaper and not measurably worse: small twin, at 20 % of the multiply-adds, -0.7 points [" in table.answer()
    assert '<tr class="member reference chosen"><td>large</td>' in table.to_html()
    assert json.loads(table.to_json())["take"]["name"] == "large"
    rings = {one.get_label(): list(np.asarray(one.get_offsets())[0]) for one in draw_pareto(table).axes[0].collections}
    assert rings["the one to take"] == pytest.approx([500, 98])
    assert rings["cheaper, not measurably worse"] == pytest.approx([101, 100 * rows[4].correct.mean()])


def test_the_front_holds_what_no_other_beats(rows: list[Row]) -> None:
    rows = [*rows, row("dearer and no better", rows[0].correct, 600)]
    table = Table.of(rows, rows[0], 10)
    expected = {
        one.name
        for one in rows
        if not any(
            (other.cost.multiply_adds <= one.cost.multiply_adds and other.correct.sum() > one.correct.sum())
            or (other.cost.multiply_adds < one.cost.multiply_adds and other.correct.sum() >= one.correct.sum())
            for other in rows
            if other.cost and one.cost
        )
    }
    assert [line.row.name for line in pareto_front(table.lines)] == [
        "tiny",
        "small",
        "small twin",
        "large",
        "ensemble of 4",
    ]
    assert expected == {"tiny", "small", "small twin", "large", "ensemble of 4"}


def test_measured_time_takes_the_place_of_multiply_adds(rows: list[Row]) -> None:
    def timed(one: Row, seconds: float) -> Row:
        assert one.cost is not None
        latency = {1: Latency(seconds, seconds, 20), 32: Latency(9 * seconds, 9 * seconds, 20)}
        return replace(one, cost=replace(one.cost, latency=latency, machine="<b>an abacus"))

    timed_rows = [timed(one, 0.001 * (6 - place)) for place, one in enumerate(rows)]
    table = Table.of(timed_rows, timed_rows[0], 10)
    cheaper = decision_of(table).cheaper
    assert cheaper is not None and cheaper.row.row is timed_rows[4] and cheaper.cost_ratio == pytest.approx(2 / 6)
    assert "at 33 % of the time for one image" in table.answer()
    page = table.to_html()
    assert "&lt;b&gt;an abacus" in page and "<b>an abacus" not in page
    assert "2.00 (2.00)" in page and "<td>1,778</td>" in page  # 32 images in 18 ms


def test_the_picture_has_every_marker_and_its_ring(rows: list[Row], tmp_path: Path) -> None:
    more_views = replace(rows[1], num_views=144, cost=Cost(1000, 200_000))
    table: Table = Table.of([*rows, more_views], rows[0], 10)
    save_png(draw_pareto(table), tmp_path / "pareto.png")
    with Image.open(tmp_path / "pareto.png") as image:
        assert image.size == (1350, 810)
        colors = {color for _, color in image.convert("RGB").getcolors(maxcolors=1 << 20) or []}
    assert {(0xC2, 0x41, 0x0C), (0x0B, 0x5C, 0xAD), (0x9A, 0xA5, 0xB1), (0x11, 0x18, 0x27)} <= colors


def test_without_costs_nothing_is_said_of_them(rows: list[Row]) -> None:
    free = [replace(one, cost=None) for one in rows]
    table = Table.of(free, free[0], 10)
    assert decision_of(table).cheaper is None and "heaper" not in table.answer()
    assert "<h2>Cost</h2>" not in table.to_html()
