"""Views, pixel by pixel, and the mean of probabilities."""

import cv2
import numpy as np
import pytest
from scipy.special import softmax

from lit_cnn.core.errors import UsageError
from lit_cnn.core.resize import Interpolation, resize_and_center_crop, resize_shorter_side
from lit_cnn.evaluation.multi_crop import VIEWS, average_probabilities, views_of

SIZE = 7  # round(7 * 256 / 224) = 8, so an image of shorter side 8 is cut without a resize


def numbered(height: int, width: int, channels: int = 3) -> np.ndarray:
    """An image in which no two pixels are equal."""
    pixels = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    assert height * width <= 256
    return np.stack([pixels ^ (85 * channel) for channel in range(channels)], axis=-1)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 13), (14, 8)])
def test_ten_crops_are_these_slices_in_this_order(height: int, width: int) -> None:
    image = numbered(height, width)
    top, left = (height - 7) // 2, (width - 7) // 2
    slices = [
        image[0:7, 0:7],
        image[0:7, width - 7 : width],
        image[height - 7 : height, 0:7],
        image[height - 7 : height, width - 7 : width],
        image[top : top + 7, left : left + 7],
    ]
    views = views_of(image, SIZE, 10)
    assert np.array_equal(views, slices + [view[:, ::-1] for view in slices])
    assert np.array_equal(views_of(image, SIZE, 5), slices)


def test_corners_hold_the_corners_of_the_image() -> None:
    image = np.zeros((8, 12, 1), dtype=np.uint8)
    image[0, 0], image[0, -1], image[-1, 0], image[-1, -1] = 1, 2, 3, 4
    views = views_of(image, SIZE, 10)[..., 0]
    corners = [(0, 0), (0, -1), (-1, 0), (-1, -1)]
    assert [int(view[corner]) for view, corner in zip(views, corners, strict=False)] == [1, 2, 3, 4]
    mirrored = [(0, -1), (0, 0), (-1, -1), (-1, 0)]
    assert [int(view[corner]) for view, corner in zip(views[5:], mirrored, strict=False)] == [1, 2, 3, 4]
    assert not views[4].any() and not views[9].any()


@pytest.mark.parametrize("interpolation", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(40, 31, 3), (31, 40, 1), (5, 9, 3), (7, 7, 3), (1, 1, 1), (300, 8, 3)])
@pytest.mark.parametrize("num_views", [1, 2])
def test_view_1_is_the_validation_view(
    shape: tuple[int, int, int], interpolation: Interpolation, num_views: int
) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = resize_and_center_crop(image, SIZE, interpolation)
    views = views_of(image, SIZE, num_views, interpolation)
    assert np.array_equal(views[0], expected)
    assert all(np.array_equal(view, expected[:, ::-1]) for view in views[1:])


@pytest.mark.parametrize("num_views", VIEWS)
@pytest.mark.parametrize("size", [1, 3, 28, 64])
@pytest.mark.parametrize("shape", [(10, 23, 3), (50, 20, 1), (2, 2, 3)])
def test_every_image_gives_so_many_contiguous_squares(num_views: int, size: int, shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    before = image.copy()
    views = views_of(image, size, num_views)
    assert views.shape == (num_views, size, size, shape[-1])
    assert views.dtype == np.uint8 and views.flags.c_contiguous
    assert np.array_equal(image, before)


def test_ten_crops_resize_to_256_of_224() -> None:
    image = np.random.default_rng(0).integers(0, 256, (500, 400, 3), dtype=np.uint8)
    resized = resize_shorter_side(image, 256, "bicubic")
    assert resized.shape == (320, 256, 3)
    views = views_of(image, 224, 10, "bicubic")
    assert np.array_equal(views[0], resized[:224, :224])
    assert np.array_equal(views[4], resized[48:272, 16:240])
    assert np.array_equal(views[8], resized[96:, 32:][:, ::-1])


@pytest.mark.parametrize(("height", "width"), [(32, 50), (50, 32), (32, 32), (44, 68)])
def test_144_crops_are_four_scales_of_three_squares_of_six_views_and_their_mirrors(height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected: list[np.ndarray] = []
    for side in (32, 36, 40, 44):  # 28 * {256, 288, 320, 352} / 224
        longer = round(max(height, width) * side / min(height, width))
        resized: np.ndarray = image
        if side != min(height, width):
            shape = (longer, side) if width > height else (side, longer)
            method = cv2.INTER_AREA if side < min(height, width) else cv2.INTER_LINEAR
            resized = np.asarray(cv2.resize(image, shape, interpolation=method))
        for start in (0, (longer - side) // 2, longer - side):
            square = resized[:, start : start + side] if width > height else resized[start : start + side]
            last, middle = side - 28, (side - 28) // 2
            for top, left in ((0, 0), (0, last), (last, 0), (last, last), (middle, middle)):
                expected.append(square[top : top + 28, left : left + 28])
            expected.append(np.asarray(cv2.resize(square, (28, 28), interpolation=cv2.INTER_AREA)))
    views = views_of(image, 28, 144)
    assert np.array_equal(views[:72], expected)
    assert np.array_equal(views[72:], [view[:, ::-1] for view in expected])
    distinct = len(np.unique(views.reshape(144, -1), axis=0))
    assert distinct == (48 if height == width else 144)


def test_a_number_of_views_holds_the_smaller_one_it_shares_its_blocks_with() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 31, 3), dtype=np.uint8)
    for fewer, more in ((1, 2), (5, 10)):
        assert VIEWS[more][: len(VIEWS[fewer])] == VIEWS[fewer]
        assert np.array_equal(views_of(image, SIZE, more)[:fewer], views_of(image, SIZE, fewer))
    for num_views, blocks in VIEWS.items():
        assert sum(block.num_views for block in blocks) == num_views


@pytest.mark.parametrize(("height", "width"), [(40, 50), (50, 40), (40, 40)])
def test_crops_are_cut_at_the_scale_that_validation_sees(height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    resized = resize_shorter_side(image, 32, "area")  # 24 / 0.75
    (validation,) = views_of(image, 24, 1, "area", 0.75)
    top, left = (resized.shape[0] - 24) // 2, (resized.shape[1] - 24) // 2
    assert np.array_equal(validation, resized[top : top + 24, left : left + 24])
    assert np.array_equal(views_of(image, 24, 2, "area", 0.75), [validation, validation[:, ::-1]])
    five = views_of(image, 24, 5, "area", 0.75)
    assert np.array_equal(five[4], validation) and np.array_equal(five[0], resized[:24, :24])
    assert np.array_equal(views_of(image, 24, 10, "area", 0.75)[:5], five)
    # The first of four scales, and the middle one of its three squares.
    assert np.array_equal(views_of(image, 24, 144, "area", 0.75)[10], validation)
    # A whole image leaves nothing to cut from: then they are those of 224 of 256.
    for many in (5, 10, 144):
        assert np.array_equal(views_of(image, 24, many), views_of(image, 24, many, "area", 224 / 256))


@pytest.mark.parametrize("num_views", [0, 7, -1, 143])
def test_an_unknown_number_of_views_is_named_with_the_known_ones(num_views: int) -> None:
    with pytest.raises(UsageError, match=rf"^views={num_views}: known numbers of crops are 1, 2, 5, 10, 144$"):
        views_of(numbered(8, 8), SIZE, num_views)


def test_average_is_that_of_probabilities_not_of_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(10, 6, 4)).astype(np.float32) * 5
    average = average_probabilities(logits)
    by_hand = np.exp(logits.astype(np.float64))
    by_hand = (by_hand / by_hand.sum(axis=2, keepdims=True)).sum(axis=0) / 10
    assert average.dtype == np.float64 and average.shape == (6, 4)
    assert average == pytest.approx(by_hand, abs=1e-15)
    assert not np.allclose(average, softmax(logits.mean(axis=0), axis=1), atol=1e-3)


def test_average_of_one_view_is_its_softmax_and_large_logits_do_not_overflow() -> None:
    logits = np.array([[[1000.0, 999.0, -1000.0]]], dtype=np.float32)
    expected = [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1)), 0]
    assert average_probabilities(logits)[0] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_diverged_network_is_refused(value: float) -> None:
    logits = np.zeros((2, 3, 4), dtype=np.float32)
    logits[1, 2, 3] = value
    with pytest.raises(UsageError, match="diverged"):
        average_probabilities(logits)
