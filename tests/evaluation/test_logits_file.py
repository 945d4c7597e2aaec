"""Half precision changes no decision, whatever the logits; what it would change is kept as it is."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from scipy.special import log_softmax, softmax

from lit_cnn.evaluation.logits_file import MOST_CHANGE, SMALL, open_logits, read_logits, to_halves, write_logits

SHAPE = (3, 40, 50)


def drawn(scale: float, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return (scale * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


def tiny_margins() -> np.ndarray:
    """Five classes on top that differ by the least step of float32, in a random order; the mean over views too."""
    logits = drawn(1.0)
    top = np.float32(9) + np.arange(7, dtype=np.float32) * np.spacing(np.float32(9))
    generator = np.random.default_rng(1)
    for image in range(SHAPE[1]):
        logits[:, image, generator.permutation(SHAPE[2])[:7]] = top
    return logits


def near_ties_far_below() -> np.ndarray:
    """The fifth and the sixth class, some 40 below the first, differ by less than halves do there."""
    logits = drawn(0.1) - 60
    logits[..., 7] = 0
    logits[..., [30, 11, 12, 13]] = [-39.99, -38, -37, -36]
    logits[..., [3, 40]] = -40
    return logits


def opposed_views() -> np.ndarray:
    """The first two views say the opposite of each other, so that two classes tie in the mean but for a hair."""
    logits = drawn(0.5)
    logits[0, :, 4], logits[1, :, 9] = 8, 8
    logits[2] = 0
    logits[2, ::2, 9] = 1e-4
    return logits


def many_alike() -> np.ndarray:
    """Thousands of improbable classes that are all rounded the same way: together they move every probability."""
    logits = np.full((1, 4, 4000), -8.0038, np.float32)
    logits[..., 5] = 0
    return logits


def not_numbers() -> np.ndarray:
    logits = drawn(3.0)
    logits[0, 3, 2], logits[1, 5, 0], logits[2, 7, 49] = np.nan, np.inf, -np.inf
    return logits


def of_bfloat16(scale: float) -> np.ndarray:
    """What a network in bfloat16 gives: three digits, so many ties."""
    return torch.from_numpy(drawn(scale)).to(torch.bfloat16).float().numpy()


CASES = {
    "plain": drawn(3.0),
    "wide": drawn(300.0),
    "beyond half precision": drawn(60_000.0),
    "all equal": np.full(SHAPE, 2.5, np.float32),
    "subnormal": drawn(1e-7),
    "far from 0": drawn(1.0) + 70_000,
    "ties": np.round(drawn(2.0)),
    "tiny margins": tiny_margins(),
    "near ties far below": near_ties_far_below(),
    "opposed views": opposed_views(),
    "many alike": many_alike(),
    "not numbers": not_numbers(),
    "bfloat16": of_bfloat16(2.0),
    "bfloat16, wide": of_bfloat16(40.0),
    "two classes": drawn(2.0, (2, 30, 2)),
    "one class": drawn(2.0, (2, 30, 1)),
    "one view": drawn(2.0, (1, 200, 300)),
}


@pytest.mark.parametrize("case", CASES)
def test_halves_change_no_decision_and_hardly_a_probability(case: str, tmp_path: Path) -> None:
    logits = CASES[case]
    write_logits(tmp_path / "a.safetensors", logits, exact=False)
    stored = read_logits(tmp_path / "a.safetensors")
    assert stored is not None and stored.shape == logits.shape and stored.dtype == np.float32
    is_finite = np.isfinite(logits).all(axis=-1)
    np.testing.assert_array_equal(stored[~is_finite], logits[~is_finite])  # whoever takes them is told
    before, after = logits.astype(np.float64), stored.astype(np.float64)
    first_five = np.argsort(-before[is_finite], axis=-1, kind="stable")[:, :5]
    assert np.array_equal(np.argsort(-after[is_finite], axis=-1, kind="stable")[:, :5], first_five)
    change = np.abs(log_softmax(after[is_finite], axis=-1) - (known := log_softmax(before[is_finite], axis=-1)))
    assert (change <= 1.01 * MOST_CHANGE * np.maximum(1, -known)).all()
    whole = is_finite.all(axis=0)
    for rule in (lambda of: softmax(of, axis=-1).mean(axis=0), lambda of: of.mean(axis=0)):
        assert np.array_equal(rule(after[:, whole]).argmax(axis=-1), rule(before[:, whole]).argmax(axis=-1))


def test_what_halves_do_not_do_is_kept_as_it_is(tmp_path: Path) -> None:
    sizes = {}
    for case, logits in CASES.items():
        write_logits(tmp_path / case, logits, exact=False)
        sizes[case] = (tmp_path / case).stat().st_size / logits.nbytes
    assert sizes["plain"] < 0.6 and sizes["one view"] < 0.6
    for case in ("tiny margins", "near ties far below", "beyond half precision", "all equal"):
        np.testing.assert_array_equal(read_logits(tmp_path / case), CASES[case])
        assert sizes[case] < 1.1
    found = to_halves(CASES["not numbers"])
    assert {3 * 3 + 0, 5 * 3 + 1, 7 * 3 + 2} <= set(found.exact_rows.tolist())
    assert len(found.exact_rows) < 0.2 * SHAPE[0] * SHAPE[1]


def test_any_images_are_read_as_they_are_in_the_whole(tmp_path: Path) -> None:
    logits = CASES["not numbers"]
    for exact in (False, True):
        write_logits(tmp_path / "a", logits, exact)
        found, whole = open_logits(tmp_path / "a"), read_logits(tmp_path / "a")
        assert found is not None and whole is not None and found.shape == SHAPE
        for start, stop in ((0, 1), (3, 4), (2, 8), (7, 40), (39, 40), (0, 40)):
            np.testing.assert_array_equal(found.read(start, stop), whole[:, start:stop])
    np.testing.assert_array_equal(whole, logits)


def test_files_of_earlier_versions_and_small_ones_have_every_digit(tmp_path: Path) -> None:
    logits = drawn(3.0)
    save_file({"logits": logits}, tmp_path / "old", {"sha256": hashlib.sha256(logits.tobytes()).hexdigest()})
    write_logits(tmp_path / "new", logits)
    assert (tmp_path / "old").read_bytes() == (tmp_path / "new").read_bytes()
    np.testing.assert_array_equal(read_logits(tmp_path / "old"), logits)
    large = drawn(3.0, (1, SMALL // 4000 + 1, 1000))
    write_logits(tmp_path / "large", large)
    assert (tmp_path / "large").stat().st_size < 0.6 * large.nbytes


def test_a_changed_or_cut_file_of_halves_counts_as_absent(tmp_path: Path) -> None:
    write_logits(tmp_path / "a", CASES["not numbers"], exact=False)
    content = (tmp_path / "a").read_bytes()
    for place in (-1, len(content) // 2, len(content) - len(content) // 5):
        (tmp_path / "b").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place:][1:])
        assert open_logits(tmp_path / "b") is None
    (tmp_path / "b").write_bytes(content[:-1])
    assert open_logits(tmp_path / "b") is None and open_logits(tmp_path / "absent") is None
