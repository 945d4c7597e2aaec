"""A search file: what it may hold, what is drawn of it, and one line for each mistake."""

import optuna
import pytest

from lit_cnn.cli.configs import available_searches, search_text
from lit_cnn.cli.tune import check_names
from lit_cnn.core.errors import UsageError
from lit_cnn.search.space import Choices, Range, arguments_of, in_words, read_space

CONDITIONAL = """
model.lr: {low: 1e-4, high: 0.1, log: true}
data.batch_size: {low: 16, high: 64, step: 16}
ema_decay: {low: 0.998, high: 0.9999}
model.optimizer:
  adamw:
  sgd:
    model.optimizer_options: [{momentum: 0.9}, null]
    model.weight_decay: [0.1, 1e-3]
  lion:
    model.weight_decay: {low: 0, high: 1, step: 0.25}
"""


def is_whole(option: str) -> bool:
    return option == "data.batch_size"


def test_values_are_drawn_with_the_options_that_come_with_them() -> None:
    space = read_space(CONDITIONAL, "s.yaml", is_whole)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [space.draw(study.ask()) for _ in range(200)]
    for values in drawn:
        lr, decay = values["model.lr"], values["ema_decay"]
        assert 1e-4 <= lr <= 0.1 and float(f"{lr:.4g}") == lr
        assert 0.998 <= decay <= 0.9999
        assert values["data.batch_size"] in (16, 32, 48, 64) and isinstance(values["data.batch_size"], int)
        own = {"adamw": set(), "sgd": {"model.optimizer_options", "model.weight_decay"}, "lion": {"model.weight_decay"}}
        first = {"model.lr", "data.batch_size", "ema_decay", "model.optimizer"}
        assert values.keys() - first == own[values["model.optimizer"]]
    assert len({values["ema_decay"] for values in drawn}) > 150  # a narrow range keeps its digits
    assert {values["model.weight_decay"] for values in drawn if values["model.optimizer"] == "sgd"} == {0.1, 0.001}
    assert {values["model.weight_decay"] for values in drawn if values["model.optimizer"] == "lion"} == {
        *(0, 0.25, 0.5, 0.75, 1)
    }
    # In the study the option has a name of its own for each value that it comes with.
    assert {"model.weight_decay (sgd)", "model.weight_decay (lion)"} <= {
        name for t in study.trials for name in t.params
    }
    with_sgd = next(values for values in drawn if values["model.optimizer"] == "sgd")
    assert '--model.optimizer_options={"momentum": 0.9}' in arguments_of(
        {**with_sgd, "model.optimizer_options": {"momentum": 0.9}}
    )
    assert in_words({"model.lr": 0.01, "config/augment": "none"}) == "lr 0.01, augment none"
    assert arguments_of({"config/augment": "none", "config": "a.yaml", "model.lr": 1e-05, "data.augment": None}) == [
        *("--config=augment/none", "--config=a.yaml", "--model.lr=1e-05", "--data.augment=null")
    ]


def test_combinations_are_counted_through_their_conditions() -> None:
    finite = "\n".join(line for line in CONDITIONAL.splitlines() if "ema" not in line and "model.lr" not in line)
    combinations = read_space(finite, "s.yaml", is_whole).combinations()
    assert combinations is not None and len(combinations) == 4 * (1 + 2 * 2 + 5)
    assert len({tuple(each.items()) for each in combinations}) == len(combinations)
    assert read_space(CONDITIONAL, "s.yaml", is_whole).combinations() is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "search=s.yaml: holds no options"),
        ("# nothing", "search=s.yaml: holds no options"),
        ("[model.lr]", "search=s.yaml: is no mapping of options"),
        ("model.lr: [0.1", "search=s.yaml: is no YAML"),
        ("model.lr: []", "model.lr []: is an empty list; give values"),
        ("model.lr: {}", "model.lr {}: has no low; give {low: 0.001, high: 0.1}"),
        ("model.lr: {low: 0.1}", "model.lr {low: 0.1}: has no high"),
        ("model.lr: {low: 2, high: 1}", "model.lr {low: 2, high: 1}: low is above high: the range is empty"),
        ("model.lr: {low: 1, high: 1}", "low is high: there is nothing to choose; give the value alone: model.lr: 1"),
        ("model.lr: {low: 0, high: 1, log: true}", "a log range begins above 0"),
        ("model.lr: {low: a, high: 1}", "low is no number"),
        ("model.lr: {low: .nan, high: 1}", "low is no number"),
        ("model.lr: {low: 1, high: 2, lgo: true}", "lgo says nothing of a range"),
        ("model.lr: {low: 1, high: 2, log: 1}", "log is neither true nor false"),
        ("model.lr: {low: 1, high: 2, log: true, step: 1}", "step and log exclude each other"),
        ("model.lr: {low: 0, high: 1, step: 0.3}", "step leads to 0.9 and not to high; give high: 0.9"),
        ("model.lr: {low: 0, high: 1, step: 2}", "step does not lead from low to high"),
        ("data.batch_size: {low: 1.5, high: 8}", "the option takes whole numbers"),
        ("model.lr: [1, 1.0]", "model.lr 1: is in the list twice"),
        ("model.lr: 1\nmodel.lr: 2", "model.lr: stands there twice; keep one of them"),
        ("model.lr: 0.1", "there is one combination, and nothing to choose"),
        ("model.optimizer: {sgd: 3}", "model.optimizer sgd: 3: below a value stand the options that come with it"),
        ("model.optimizer: {sgd: {model.lr: [1, 2]}}\nmodel.lr: [1, 2]", "model.lr: may come from two places at once"),
        ("model.optimizer: {sgd: {model.lr: {low: 2, high: 1}}}", "model.lr {low: 2, high: 1}: low is above high"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_file_option_and_value(text: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_space(text, "s.yaml", is_whole)
    assert expected in str(caught.value) and "\n" not in str(caught.value) and "search=s.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "of_fit", "expected"),
    [
        ("model.lrr: [1, 2]", [], "model.lrr: no such option of lit-cnn fit; did you mean model.lr"),
        ("lr: [1, 2]", [], "lr: no such option of lit-cnn fit; did you mean model.lr?"),
        ("model: [1, 2]", [], "model: no such option"),
        ("model.lr: [0.1, high]", [], "model.lr high: give a number"),
        ("model.schedule: [one_cycle, step]", [], "model.schedule step: choose one of constant, one_cycle, cyclic"),
        ("trainer.max_epochs: {low: 1, high: 3.5}", [], "the option takes whole numbers"),
        ("model.lr: [1, 2]", ["--model.lr=0.1"], "--model.lr 0.1 on the command line is for all trials"),
        ("data.val_fraction: [0.1, 0.2]", [], "data.val_fraction: is the same for all trials of a search"),
        ("seed_everything: [1, 2]", [], "seed_everything: is the same for all trials"),
        ("config/augment: [none, nnone]", [], "config/augment nnone: no such file"),
    ],
)
def test_names_and_kinds_are_those_of_fit(text: str, of_fit: list[str], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_names(read_space(text, "s.yaml", lambda option: option == "trainer.max_epochs"), of_fit)
    assert expected in str(caught.value)


def test_every_ready_search_is_one_and_is_drawn_from() -> None:
    assert {"search/lr", "search/transfer", "search/augment", "search/architecture"} <= available_searches().keys()
    for name, line in available_searches().items():
        assert 10 < len(line) <= 120
        space = read_space(search_text(name), name)
        check_names(space, [])
        values = space.draw(optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask())
        assert values and search_text(name.removeprefix("search/")) == search_text(name)
        assert all(isinstance(each.domain, Choices | Range) for each in space.all_dimensions())
    with pytest.raises(
        UsageError, match="search=lrr: no such file, and no search of that name; give a file, or one of"
    ):
        search_text("lrr")
