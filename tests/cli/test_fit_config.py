"""`lit_cnn.fit_config` trains what `lit-cnn fit` trains, and says mistakes as Python spells them."""

import doctest
from pathlib import Path
from typing import Any

import pytest

import lit_cnn
from lit_cnn.cli import main
from tests.runs import DIGITS, SHORT, SHORT_OPTIONS, TrackedRun, fit, same_weights, tracked_runs

CONFIG = "lenet5_scratch_digits"

pytestmark = pytest.mark.usefixtures("empty_store")


def weights(run: TrackedRun) -> Path:
    return run.artifacts / "checkpoints" / "best.ckpt"


def test_its_runs_are_those_of_the_command_line(trained: Path, tmp_path: Path) -> None:
    options = {**SHORT_OPTIONS, "experiment": "from Python"}
    parent = lit_cnn.fit_config(CONFIG, options=options, seeds=[2, 0])
    assert [child.id for child in parent.children] == [run.run_id for run in tracked_runs(tmp_path, "fit")]
    assert parent.metrics["test/acc"] == pytest.approx(sum(run.metrics["test/acc"] for run in parent.children) / 2)

    of_seed = {run.tags["seed"]: run for run in tracked_runs(trained, "fit")}
    for run in tracked_runs(tmp_path, "fit"):
        other = of_seed[run.tags["seed"]]
        assert same_weights(weights(run), weights(other))
        assert run.tags["config_digest"] == other.tags["config_digest"]
        assert run.metrics["test/acc"] == other.metrics["test/acc"]


def test_options_of_every_kind_win_over_the_configurations(tmp_path: Path) -> None:
    flips = [{"class_path": "albumentations.HorizontalFlip", "init_args": {"p": 0.25}}]
    chosen: dict[str, Any] = {"model.lr": 1e-05, "data.augment": flips, "test_after_fit": False, "recipe": "x"}
    run = lit_cnn.fit_config("data/digits", DIGITS, options={**SHORT_OPTIONS, **chosen, "monitor": "val/loss"})
    assert run.name == "lenet5_scratch_digits_x"
    assert "test/acc" not in run.metrics
    (tracked,) = tracked_runs(tmp_path)
    assert tracked.run_id == run.id
    expected = {"model.lr": "1e-05", "monitor": "val/loss", "trainer.max_epochs": "2", "model.schedule": "one_cycle"}
    assert expected.items() <= tracked.params.items()
    text = (tracked.artifacts / "config.yaml").read_text(encoding="utf-8")
    assert "HorizontalFlip" in text
    assert "p: 0.25" in text


def test_a_student_is_that_of_distill(tmp_path: Path) -> None:
    assert fit("--seeds", "0", "1") == 0
    teachers = [run.run_id for run in tracked_runs(tmp_path, "fit")]
    assert main(["distill", *SHORT, "--teachers", *teachers]) == 0
    of_command = tracked_runs(tmp_path, "fit")[-1]
    run = lit_cnn.fit_config(CONFIG, options=SHORT_OPTIONS, teachers=[teachers[0][:8], teachers[1]])
    assert run.name == of_command.name == "lenet5_scratch_digits_student"
    assert run.checkpoint is not None
    assert same_weights(run.checkpoint, weights(of_command))


@pytest.mark.parametrize(
    ("configs", "options", "said"),
    [
        ([CONFIG], {"model.lrr": 1}, "model.lrr=1: no such option; did you mean model.lr, "),
        ([CONFIG], {"max_epochs": 3}, "max_epochs=3: no such option; did you mean trainer.max_epochs?"),
        (["lenet_scratch_digits"], {}, "config=lenet_scratch_digits: no such file, and no configuration of that name"),
        ([CONFIG], {"data.batch_size": 0}, "data.batch_size=0: give a whole number of at least 1"),
        ([CONFIG], {"monitor": "val/nonsense"}, "monitor=val/nonsense: choose one of val/acc"),
        ([CONFIG], {"model.lr": "fast"}, "model.lr=fast: give a number"),
        ([CONFIG], {"find_batch_size": True}, "find_batch_size=True: is no option of a run; leave it out"),
        ([CONFIG], {"print_config": ""}, "print_config: is no option of a run; leave it out"),
    ],
)
def test_mistakes_are_told_in_python(configs: list[str], options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(lit_cnn.UsageError) as caught:
        lit_cnn.fit_config(*configs, options={**SHORT_OPTIONS, **options})
    assert str(caught.value).startswith(said)
    assert not list(tmp_path.glob("mlruns/journal/*"))


def test_seeds_that_make_no_sense_are_refused() -> None:
    for seeds in ([], [1, 1]):
        with pytest.raises(lit_cnn.UsageError, match=r"different whole numbers, such as \[0, 1, 2\]"):
            lit_cnn.fit_config(CONFIG, seeds=seeds)
    with pytest.raises(lit_cnn.UsageError, match="seeds: goes with neither seed nor ckpt_path"):
        lit_cnn.fit_config(CONFIG, options={"seed_everything": 3}, seeds=[0])


def test_the_example_runs_and_gives_what_it_shows() -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(lit_cnn.fit_config, "fit_config")
    assert len(example.examples) > 2
    assert doctest.DocTestRunner().run(example).failed == 0
