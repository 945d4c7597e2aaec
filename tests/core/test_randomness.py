import pickle

import albumentations
import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from lit_cnn.core.randomness import (
    SCHEME_VERSION,
    KeyedRandom,
    SplitMixRandom,
    balanced_order,
    epoch_permutation,
    first_uniforms,
    generator,
    key_words,
    many_key_words,
    torch_seed,
)


def test_version_2_of_the_scheme_draws_what_it_has_always_drawn() -> None:
    """Raise SCHEME_VERSION before you change these: a resumed run would go on with other draws."""
    assert SCHEME_VERSION == 2
    assert key_words("augment", 0, 0, 0) == (3775372457068258034, 3871999007037704877)
    assert key_words("order", 1, 2) == (2702654929390881071, 17839555574545215348)
    assert key_words() == (5305399256101424259, 17222939857198149504)
    assert torch_seed("a", 1) == 453186776871447842
    assert epoch_permutation(0, 0, 10).tolist() == [9, 3, 7, 5, 2, 4, 1, 0, 8, 6]
    assert balanced_order(0, 0, np.array([0, 0, 0, 0, 1, 2])).tolist() == [3, 11, 1, 5, 10, 4]
    assert generator("x").random(2) == pytest.approx([0.14367527, 0.15006765], abs=1e-8)
    keyed = KeyedRandom()
    keyed.rekey("augment", 0, 0, 0)
    assert keyed.generator.integers(0, 1000, 3).tolist() == [49, 306, 558]
    assert keyed.python_random.random() == pytest.approx(0.12035976104775292, abs=1e-12)


def test_different_keys_draw_differently() -> None:
    keys: list[tuple[int | str, ...]] = [
        (seed, epoch, index) for seed in range(3) for epoch in range(9) for index in range(9)
    ]
    # A number is not its digits, and parts do not run together.
    keys += [("1",), (1,), (1, 1), (11,), ("1", "1"), ("ab", "c"), ("a", "bc"), (-1,), ()]
    assert len({key_words(*key) for key in keys}) == len(keys)
    assert len({torch_seed(*key) for key in keys}) == len(keys)
    assert len({tuple(generator(*key).integers(0, 2**62, 2)) for key in keys}) == len(keys)


def test_the_same_key_draws_the_same() -> None:
    assert key_words("augment", 3, 1, 4) == key_words("augment", 3, 1, 4)
    np.testing.assert_array_equal(generator("a", 5).random(9), generator("a", 5).random(9))


def test_words_and_seeds_keep_to_their_range() -> None:
    words = [key_words(number) for number in range(2000)]
    assert all(0 <= word < 2**64 for pair in words for word in pair)
    assert max(word for pair in words for word in pair) > 2**63
    seeds = [torch_seed(number) for number in range(2000)]
    assert min(seeds) >= 0 and 2**62 < max(seeds) < 2**63


@pytest.mark.parametrize("num_images", [0, 1, 2, 1000])
def test_an_epoch_is_a_permutation(num_images: int) -> None:
    order = epoch_permutation(7, 3, num_images)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(num_images))


def test_seed_and_epoch_both_change_the_order() -> None:
    orders = {tuple(epoch_permutation(seed, epoch, 50)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


LABELS = np.array([2] * 3 + [0] * 90 + [1] * 30)


def test_a_balanced_epoch_has_equal_shares_and_repeats_no_image_before_its_turn() -> None:
    for epoch in range(5):
        order = balanced_order(0, epoch, LABELS)
        turns, positions = np.divmod(order, len(LABELS))
        assert order.dtype == np.int64 and len(order) == len(LABELS) == len(np.unique(order))
        assert np.bincount(LABELS[positions]).tolist() == [41, 41, 41]
        assert np.bincount(positions)[LABELS == 2].tolist() in ([14, 14, 13], [14, 13, 14], [13, 14, 14])
        assert np.bincount(positions, minlength=len(LABELS))[LABELS == 0].max() == 1
        assert sorted(np.bincount(positions, minlength=len(LABELS))[LABELS == 1]) == [1] * 19 + [2] * 11
        for position in np.unique(positions):  # the first time, the second, and so on without a gap
            assert sorted(turns[positions == position]) == list(range((positions == position).sum()))


def test_a_balanced_epoch_belongs_to_seed_and_epoch_and_thins_anew() -> None:
    orders = {tuple(balanced_order(seed, epoch, LABELS)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    np.testing.assert_array_equal(balanced_order(1, 2, LABELS), balanced_order(1, 2, LABELS.copy()))
    kept = {tuple(sorted(p for p in balanced_order(0, epoch, LABELS) if 3 <= p < 93)) for epoch in range(4)}
    assert len(kept) == 4


@pytest.mark.parametrize("labels", [[5], [0, 1, 2, 3], [7, 7, 7]])
def test_small_balanced_epochs(labels: list[int]) -> None:
    order = balanced_order(0, 0, np.array(labels, np.int64))
    assert sorted(order.tolist()) == list(range(len(labels)))


def test_what_does_not_divide_goes_to_other_classes_in_other_epochs() -> None:
    labels = np.arange(4).repeat(25)[:99]
    extra = {int(np.argmin(np.bincount(labels[balanced_order(0, e, labels) % 99], minlength=4))) for e in range(30)}
    assert extra == {0, 1, 2, 3}


def test_rekey_equals_a_fresh_generator_whatever_was_drawn_before() -> None:
    keyed = KeyedRandom()
    for number in range(50):
        keyed.rekey("augment", number)
        fresh = generator("augment", number)
        # An odd number of 32-bit draws leaves half a word behind, an odd number of words a part of the buffer.
        assert keyed.generator.integers(0, 2**31, dtype=np.int32) == fresh.integers(0, 2**31, dtype=np.int32)
        np.testing.assert_array_equal(keyed.generator.random(number), fresh.random(number))
        np.testing.assert_array_equal(keyed.generator.normal(size=3), fresh.normal(size=3))
        keyed.python_random.gauss(0, 1)


def test_rekey_sets_the_python_generator_too() -> None:
    keyed = KeyedRandom()

    def draw(*key: int) -> list[float]:
        keyed.rekey(*key)
        return [keyed.python_random.gauss(0, 1) for _ in range(3)]  # gauss keeps every second draw back

    first = draw(1)
    assert draw(2) != first
    assert draw(1) == first


def test_splitmix64_gives_what_its_reference_gives() -> None:
    # The outputs of the public-domain reference in C from this state.
    draw = SplitMixRandom(1234567)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [draw.getrandbits(64) for _ in range(4)] == expected
    again = SplitMixRandom(1234567 + 2**64)
    assert again.random() == (expected[0] >> 11) / 2**53
    assert again.getrandbits(100) == ((expected[1] << 64 | expected[2]) >> 28) and again.getrandbits(0) == 0


def test_splitmix_serves_all_that_random_draws() -> None:
    draw = SplitMixRandom(5)
    counts = np.bincount([draw.randint(0, 9) for _ in range(5000)], minlength=10)
    assert chisquare(counts).pvalue > 0.001
    assert kstest([draw.random() for _ in range(5000)], "uniform").pvalue > 0.001
    assert kstest([draw.gauss(0, 1) for _ in range(5000)], "norm").pvalue > 0.001
    assert sorted(draw.sample(range(20), 20)) == list(range(20))
    assert {draw.choice("abc") for _ in range(50)} == set("abc")
    copy = pickle.loads(pickle.dumps(draw))
    assert [copy.gauss(0, 1) for _ in range(5)] == [draw.gauss(0, 1) for _ in range(5)]
    draw.gauss(0, 1)
    draw.seed(5)
    assert draw.gauss(0, 1) == SplitMixRandom(5).gauss(0, 1)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_first_uniforms_are_those_after_a_rekey(count: int) -> None:
    keys = [(seed, epoch, index) for index in (0, 7, 2**40) for seed in (0, -1) for epoch in (0, 3)] + [(1,), (3, 1)]
    keyed = KeyedRandom()
    expected = []
    for key in [*keys, *sorted(keys)]:
        keyed.rekey("augment", *key)
        expected.append([keyed.python_random.random() for _ in range(count)])
    np.testing.assert_array_equal(first_uniforms("augment", [*keys, *sorted(keys)], count), expected)


def test_200_of_200_images_are_drawn_again_with_nested_and_elastic_transforms() -> None:
    keyed = KeyedRandom()
    compose = albumentations.Compose(
        [
            albumentations.OneOf(
                [
                    albumentations.SomeOf([albumentations.GaussNoise(p=1), albumentations.Blur(p=0.5)], n=1, p=1),
                    albumentations.ElasticTransform(alpha=20, sigma=4, p=1),
                    albumentations.OneOf([albumentations.Rotate(p=1), albumentations.HorizontalFlip(p=1)], p=1),
                ],
                p=0.9,
            ),
            albumentations.CoarseDropout(p=0.5),
        ]
    )
    compose.set_random_state(keyed.generator, keyed.python_random)
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)

    def draw(index: int) -> bytes:
        keyed.rekey("augment", 0, 0, index)
        return compose(image=image)["image"].tobytes()

    first = [draw(index) for index in range(200)]
    again = [draw(index) for index in reversed(range(200))][::-1]
    assert sum(one == other for one, other in zip(first, again, strict=True)) == 200
    assert len(set(first)) > 150


def test_many_keys_have_the_words_of_each() -> None:
    keys: list[tuple[int | str, ...]] = [("test", 0, "ab"), ("test", 0, "c")]
    keys += [("val", 0, 7), ("val", 1, 7), (3,), ("é",)]
    expected = [key_words("split", *key) for key in keys]
    assert [tuple(map(int, words)) for words in many_key_words("split", keys)] == expected
    assert many_key_words("split", []).shape == (0, 2)
