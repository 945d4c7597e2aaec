"""What a run came to, in sentences: each case of accuracy, mistakes, validation and seeds."""

from dataclasses import replace

import numpy as np
import pytest

from lit_cnn.core.intervals import wilson_interval
from lit_cnn.reports.run_words import Facts, seed_sentences, sentences, share


def facts(counts: list[list[int]] | None, **more: object) -> Facts:
    """A run over three classes, or those that are given, that was best in epoch 7 of 10 with 14 of 15 val images."""
    table = None if counts is None else np.array(counts)
    names = ("leaf", "flower", "stone", *(f"more {n}" for n in range(200)))[: 3 if table is None else len(table)]
    found = Facts(
        names, table, [9, *(len(names) - 1) * [8]], best_epoch=7, num_epochs=10, val_share=14 / 15, num_val=15
    )
    return replace(found, **more)  # type: ignore[arg-type]


VAL = "14 of 15 val images right (93.3 %)"
MORE = "It is the last one: more epochs may help."
GUESS = "always guessing leaf, the most frequent class in training,"
DIAGONAL = [[8, 0, 0], [0, 7, 0], [0, 0, 7]]


@pytest.mark.parametrize(
    ("counts", "begin"),
    [
        (DIAGONAL, ["All 22 test images right: 100 % [85, 100]."]),
        (
            [[7, 1, 0], [0, 7, 0], [0, 0, 7]],
            ["21 of 22 test images right: 95.5 % [78, 99].", "The one mistake: leaf taken for flower."],
        ),
        (
            [[6, 2, 0], [0, 7, 0], [0, 0, 7]],
            ["20 of 22 test images right: 90.9 % [72, 97].", "Both mistakes: leaf taken for flower."],
        ),
        (
            [[5, 3, 0], [0, 7, 0], [0, 0, 7]],
            ["19 of 22 test images right: 86.4 % [67, 95].", "All 3 mistakes: leaf taken for flower."],
        ),
        (
            [[7, 1, 0], [1, 6, 0], [0, 0, 7]],
            [
                "20 of 22 test images right: 90.9 % [72, 97].",
                "The mistakes: leaf taken for flower and flower taken for leaf.",
            ],
        ),
        (
            [[6, 2, 0], [1, 6, 0], [0, 0, 7]],
            [
                "19 of 22 test images right: 86.4 % [67, 95].",
                "The mistakes: leaf taken for flower (2 times) and flower taken for leaf.",
            ],
        ),
        (
            [[70, 8, 2], [1, 60, 0], [5, 0, 70]],
            [
                "200 of 216 test images right: 92.6 % [88, 95].",
                "The most frequent of 16 mistakes: leaf taken for flower (8 times) and stone taken for leaf (5 times).",
            ],
        ),
        (
            [[6, 1, 1], [1, 6, 0], [1, 0, 6]],
            ["18 of 22 test images right: 81.8 % [61, 93].", "No two of the 4 mistakes are alike."],
        ),
        (
            [[9999, 1], [0, 10000]],
            [
                "19,999 of 20,000 test images right: 99.995 % [99.97, 100.00].",
                "The one mistake: leaf taken for flower.",
            ],
        ),
        ([[1, 0], [0, 0]], ["1 of 1 test image right: one image says little."]),
    ],
)
def test_how_many_are_right_and_what_is_taken_for_what(counts: list[list[int]], begin: list[str]) -> None:
    assert sentences(facts(counts))[: len(begin)] == begin
    assert "mistake" not in "".join(sentences(facts(counts))[len(begin) :])


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        # As good as the guess, worse, and better by what may be chance: McNemar on 4 to 2.
        ([[12, 0], [10, 0]], f"That is no good: {GUESS} gets as many right, 12 of 22."),
        ([[5, 7], [8, 2]], f"That is no good: {GUESS} gets more right, 12 of 22."),
        (
            [[11, 1], [3, 7]],  # 7 to 1: p = 0.07
            f"With so few test images that cannot be told from a guess: {GUESS} would get 12 of 22 right.",
        ),
        (
            [[10, 2], [6, 4]],
            f"With so few test images that cannot be told from a guess: {GUESS} would get 12 of 22 right.",
        ),
    ],
)
def test_it_says_so_where_a_guess_is_as_good(counts: list[list[int]], said: str) -> None:
    assert said in sentences(facts(counts))


def test_a_class_is_the_most_frequent_only_if_no_other_has_as_many() -> None:
    said = sentences(facts([[12, 0], [10, 0]], train_counts=[9, 9]))
    assert "That is no good: always guessing leaf gets as many right, 12 of 22." in said


def test_pairs_that_are_a_small_part_of_the_mistakes_are_not_named() -> None:
    counts = np.ones((12, 12), int) + 50 * np.eye(12, dtype=int)
    counts[0, 1] = 2
    assert "No pair of classes stands out among the 133 mistakes." in sentences(facts(counts.tolist()))


def test_nothing_is_said_of_a_guess_that_is_worse() -> None:
    assert not any("guessing" in said for said in sentences(facts([[12, 0], [1, 9]])))


def test_classes_of_which_none_is_right_are_named_or_counted() -> None:
    assert "None of the 7 images of flower is right." in sentences(facts([[8, 0, 0], [7, 0, 0], [0, 0, 7]]))
    two = sentences(facts([[90, 0, 0], [7, 0, 0], [0, 3, 0]]))
    assert "None of the 7 images of flower and none of the 3 images of stone is right." in two
    many = np.zeros((100, 100), int)
    many[:50, 0] = 4
    many[np.arange(50, 100), np.arange(50, 100)] = 4
    assert "Of 49 of the 100 classes no test image is right." in sentences(facts(many.tolist()))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, f"Epoch 7 of 10 is the best on val: {VAL}."),
        ({"best_epoch": 10}, f"Epoch 10 of 10 is the best on val: {VAL}. {MORE}"),
        ({"best_epoch": 10, "val_share": 1.0}, "Epoch 10 of 10 is the best on val: all 15 val images right."),
        ({"best_epoch": 10, "is_tied": True}, f"Epoch 10 of 10 is the best on val: {VAL}."),
        ({"best_epoch": 1, "num_epochs": 1}, f"The one epoch has {VAL}; more epochs may help."),
        ({"best_epoch": 10, "unit": "penalty"}, f"Penalty 10 of 10 is the best on val: {VAL}."),
        ({"monitor": "val/f1"}, f"Epoch 7 of 10 is the best on val by val/f1: {VAL}."),
        ({"num_val": None}, "Epoch 7 of 10 is the best on val: 93.3 % of the val images right."),
        ({"num_epochs": 6}, f"Epoch 7 of 7 is the best on val: {VAL}. {MORE}"),
        ({"averaged": "a moving average of the weights"}, "What was tested is a moving average of the weights."),
        ({"val_share": 0.95, "num_val": 1000}, "Val promised more than the test shows; trust the test."),
    ],
)
def test_which_epoch_is_best_and_whether_more_may_help(more: dict[str, object], said: str) -> None:
    counts = [[5, 3, 0], [2, 5, 0], [0, 1, 6]]
    assert said in sentences(facts(counts, **more))
    if MORE not in said:
        assert not any(MORE in each for each in sentences(facts(counts, **more)))
    if "num_val" not in more:
        assert not any("Val promised" in each for each in sentences(facts(counts, **more)))


def test_without_a_test_val_speaks_with_a_warning() -> None:
    assert sentences(facts(None)) == [
        f"Epoch 7 of 10 is the best on val: {VAL}.",
        "Nothing was tested; the epoch was chosen on val, so expect a little less.",
    ]
    assert sentences(facts(None, best_epoch=None)) == [
        "Nothing was validated, so the run has no best epoch and was not tested."
    ]


def test_names_are_shown_on_one_line_and_not_at_any_length() -> None:
    odd = facts([[7, 1, 0], [0, 7, 0], [0, 0, 7]], class_names=["le\naf", "f" * 100, "stone"])
    (mistake,) = [said for said in sentences(odd) if "mistake" in said]
    assert mistake == rf"The one mistake: le\naf taken for {'f' * 15}…{'f' * 16}."


@pytest.mark.parametrize("num_images", [1, 7, 22, 359, 10_000, 1_000_000])
def test_an_accuracy_is_as_exact_as_its_images_allow(num_images: int) -> None:
    for correct in (0, 1, num_images // 3, num_images - 1, num_images):
        text = share(correct, num_images)
        low, high = (100 * limit for limit in wilson_interval(correct, num_images))
        shown_low, shown_high = map(float, text.partition("[")[2].rstrip("]").split(","))
        step = 10.0 ** -len(text.partition("[")[2].partition(",")[0].partition(".")[2])
        assert abs(shown_low - low) <= step / 2 + 1e-9 and abs(shown_high - high) <= step / 2 + 1e-9
        assert (text.startswith("100 %")) == (correct == num_images) and (text.startswith("0 %")) == (correct == 0)


def test_several_seeds_come_to_a_mean_and_the_best_on_val() -> None:
    results = {"0": (0.98, 0.9), "1": (0.99, 0.95), "2": (0.97, 0.95)}
    runs = {seed: {"test/acc": test, "best/val/acc": val} for seed, (test, val) in results.items()}
    assert seed_sentences(runs) == [
        "3 seeds: 98.00 ± 1.00 % of the test images right (mean ± standard deviation).",
        "Best on val: seeds 1 and 2, equally (test: 99.00 %, 97.00 %).",
    ]
    only = {"0": runs["0"], "1": runs["1"]}
    assert seed_sentences(only)[1] == "Best on val: seed 1 (test: 99.00 %)."
    untested = {seed: {"best/val/acc": 0.5} for seed in "01"}
    assert seed_sentences(untested) == [
        "2 seeds: 50.00 ± 0.00 % of the val images right (mean ± standard deviation).",
        "On val they are all equal.",
    ]
    assert seed_sentences({"4": runs["0"]}) == ["1 seed: 98.00 % of the test images right."]
    assert seed_sentences({"4": {}, "5": {}}) == ["2 seeds, none with a validation."]
