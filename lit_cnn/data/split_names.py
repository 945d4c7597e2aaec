"""What a name says of a split: a folder's, a shard's, a cell's."""

import re
from typing import NamedTuple

SPLIT_FOLDERS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "vali", "vld", "dev", "devel", "development"),
    "test": ("test", "testing", "tst"),
}
"""The words for each split, in small letters; `split_of_name` knows them with what may stand around them."""

VAL_OR_TEST = "val or test"
"""What is said by words that are used for both."""

_SPLITS_OF = {
    **{word: (split,) for split, words in SPLIT_FOLDERS.items() for word in words},
    **dict.fromkeys(("eval", "evaluation", "holdout", "heldout"), (VAL_OR_TEST,)),
    **dict.fromkeys(("trainval", "traintest"), ("train", VAL_OR_TEST)),
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What leaves a split's name what it is: train_images, data-train, testset, val2017.
_JOINED_ON = _words(
    "set sets split splits data dataset datasets image images img imgs picture pictures pic pics photo photos file "
    "files folder dir sample samples"
)
_NEUTRAL = _JOINED_ON | _words("x part shard fold v ver version")
# With these too, it is hardly a class: train_final, my_test, trainA.
_QUALIFIERS = _words(
    "old new final full all small mini tiny large big sub subset my our own the raw clean cleaned orig original "
    "originals processed preprocessed prepared resized cropped crop crops aug augmented balanced sorted labeled "
    "labelled unlabeled unlabelled public private extra partial combined merged complete copy backup bak tmp temp "
    "out output in input jpg jpeg png rgb gray px a b c d"
)
_TOKEN = re.compile(r"[^\W\d_]+|\d+")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_AROUND = f"(?:{'|'.join(sorted(_JOINED_ON))})*"
_JOINED = re.compile(f"{_AROUND}({'|'.join(sorted(_SPLITS_OF, key=len, reverse=True))}){_AROUND}")


class SplitName(NamedTuple):
    """What the words of a name say.

    Attributes:
        splits: Of what splits it speaks, in their order: `train`, `val`, `test`, `val or test`.
        is_plain: Whether nothing else is said, as by `train`, `training_set`, `data-test`, `val2017`.
        is_likely: Whether what else is said is no class either, as by `train_final`; so is every plain name.
        rest: The other words: those of `seg_train` and `seg_test` are alike.
    """

    splits: tuple[str, ...]
    is_plain: bool
    is_likely: bool
    rest: tuple[str, ...]

    @property
    def is_word(self) -> bool:
        """Whether it says something besides splits, numbers and what stands around them in names, as a class does."""
        return not _QUALIFIERS.issuperset(self.rest)


def read_split_name(name: str) -> SplitName:
    """Returns what the words of a name say."""
    words = [word.lower() for word in _TOKEN.findall(_HUMP.sub(" ", name))]
    splits: list[str] = []
    rest: list[str] = []
    for word in words:
        if joined := _JOINED.fullmatch(word):
            splits += _SPLITS_OF[joined[1]]
        elif word not in _NEUTRAL and not word.isdecimal():
            rest.append(word)
    found = tuple(dict.fromkeys(splits))
    is_likely = bool(found) and _QUALIFIERS.issuperset(rest)
    return SplitName(found, len(found) == 1 and not rest, is_likely, tuple(rest))


def split_of_name(name: str) -> str:
    """Returns the split that a name unmistakably says: `train`, `val` or `test`; nothing if it says none or several.

    `train`, `Training`, `training_set`, `data_train`, `train2017`, `TrainImages`, `testset`, `trn`, `dev`; not
    `test_tube`, and not `eval`, which is used for val and for test.
    """
    said = read_split_name(name)
    return said.splits[0] if said.is_plain and said.splits[0] in SPLIT_FOLDERS else ""


def splits_among_words(name: str) -> tuple[str, ...]:
    """Returns the splits of which a name speaks among whatever else it says, as `imagenet1k-train-0000` of train."""
    return read_split_name(name).splits
