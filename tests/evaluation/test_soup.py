"""Averages of weights: greedy on val, within one basin, and a run that other commands take."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_cnn.cli import main
from lit_cnn.core.errors import UsageError
from lit_cnn.evaluation.ensemble import ensemble
from lit_cnn.evaluation.predict import Loading, load_member
from lit_cnn.evaluation.soup import MOST_BARRIER, Soup, average_of, is_barrier
from lit_cnn.evaluation.soup import soup as make_soup
from lit_cnn.evaluation.statistics import paired_bootstrap
from lit_cnn.training.checkpoints import digest_of_weights, load_checkpoint
from tests.runs import TrackedRun, copy_empty_store, fit, inside, tracked_runs

HERE = Loading(num_workers=0)
BATCH_NORM = "--model.arch_options={batch_norm: true}"
# The rate stays high to the end, as it does where averages of weights gain most.
TUNED = (
    BATCH_NORM,
    "--model.transfer=full",
    "--model.lr=0.003",
    "--model.schedule=constant",
    "--model.warmup_fraction=0",
    "--recipe=tuned",
)


@dataclass(frozen=True)
class Store:
    """A folder with runs: one from other weights, two that start from those of a third."""

    folder: Path
    base: TrackedRun
    other: TrackedRun
    tuned: list[TrackedRun]

    @property
    def ids(self) -> list[str]:
        """Of the tuned ones and the other."""
        return [run.run_id for run in (*self.tuned, self.other)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("soup")
    copy_empty_store(tmp_path_factory.getbasetemp(), folder)
    with inside(folder):
        for seed in (0, 1):
            assert fit(BATCH_NORM, f"--seed_everything={seed}", "--trainer.max_epochs=4") == 0
        base, other = tracked_runs(folder)
        for seed in (3, 4):
            assert fit(*TUNED, f"--seed_everything={seed}", f"--model.weights=runs:/{base.run_id}") == 0
    return Store(folder, base, other, tracked_runs(folder)[2:])


@pytest.fixture(scope="module")
def made(store: Store) -> Soup:
    with inside(store.folder):
        return make_soup(store.ids, loading=HERE)


@pytest.fixture(scope="module")
def soup(store: Store, made: Soup) -> TrackedRun:
    (run,) = tracked_runs(store.folder, "soup")
    return run


def states(store: Store) -> list[dict[str, torch.Tensor]]:
    return [load_checkpoint(run.artifacts / "checkpoints" / "best.ckpt")["state_dict"] for run in store.tuned]


def test_the_average_is_that_of_what_lies_in_one_basin_with_statistics_of_its_own(
    store: Store, soup: TrackedRun
) -> None:
    found = {each["run_id"]: each for each in json.loads((soup.artifacts / "soup.json").read_text())}
    assert found[store.other.run_id]["outcome"] == "another basin"
    assert found[store.other.run_id]["barrier_acc"] > MOST_BARRIER and found[store.other.run_id]["barrier_loss"] > 0
    assert {found[run.run_id]["outcome"] for run in store.tuned} == {"first", "in the soup"}
    checkpoint = load_checkpoint(soup.artifacts / "checkpoints" / "best.ckpt")
    of_soup, parts = checkpoint["state_dict"], states(store)
    for name, tensor in of_soup.items():
        mean = torch.stack([part[name].double() for part in parts]).mean(0)
        if "running" not in name and tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-7)
    # BatchNorm's first layer sees the images through averaged weights alone: its statistics can be computed by hand.
    with inside(store.folder):
        member = load_member(soup.artifacts / "checkpoints" / "best.ckpt")
    batches = list(member.data.plain_train_loader())
    assert sum(len(images) for images, _ in batches) == 128
    maps = torch.cat([member.model.net.conv1(member.model.normalize(images)) for images, _ in batches])  # type: ignore[operator]
    torch.testing.assert_close(of_soup["net.conv1_norm.running_mean"], maps.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(of_soup["net.conv1_norm.running_var"], maps.var((0, 2, 3)), rtol=1e-3, atol=1e-4)
    net = {name.removeprefix("net."): tensor for name, tensor in of_soup.items()}
    assert soup.tags["weights_digest"] == digest_of_weights(net) == member.record.weights_digest


def test_what_became_of_each_network_is_said(store: Store, soup: TrackedRun, made: Soup) -> None:
    assert (made.id, made.name, made.is_sent) == (soup.run_id, soup.name, True)
    assert made.metrics == pytest.approx(soup.metrics)
    assert made.checkpoint is not None and made.checkpoint.is_file()
    used = {each.run_id for each in made.ingredients if each.is_used}
    assert used == {run.run_id for run in store.tuned} == set(soup.tags["members"].split())
    first_line, *lines, last = str(made).splitlines()
    (other,) = (each for each in made.ingredients if each.run_id == store.other.run_id)
    assert lines == [f"  {each}" for each in made.ingredients] and last == f"run {soup.run_id}"
    assert f"barrier {100 * (other.barrier_acc or 0):+.1f} points [" in str(other) and str(other).endswith(
        ": another basin"
    )
    val, test = (100 * soup.metrics[name] for name in ("best/val/acc", "test/acc"))
    alone = made.ingredients[0]
    assert first_line == soup.tags["mlflow.note.content"]
    assert first_line == (
        f"A soup of 2 of 3 networks: {val:.1f} % on 143 val images, {alone.name} alone {100 * alone.val.acc:.1f} %; "
        f"{test:.1f} % on 359 test images."
    )


@pytest.mark.parametrize(
    ("lost", "num_images", "loss", "expected"),
    [
        (0.5, 17, 0.1, False),  # half an image of 17 is 3 points: one cannot tell
        (5, 17, 0.1, True),
        (5, 17, -0.1, False),  # linear heads on the same features: their loss has no barrier
        (5, 1000, 0.1, False),  # measurable, and below two points
        (25, 1000, 0.1, True),
    ],
)
def test_a_barrier_is_one_that_so_many_images_can_show(
    lost: float, num_images: int, loss: float, expected: bool
) -> None:
    per_image = np.zeros(num_images)
    per_image[: math.ceil(lost)] = min(1, lost)
    assert is_barrier(paired_bootstrap(per_image), loss) is expected


def test_a_soup_is_a_run_like_others(store: Store, soup: TrackedRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert (soup.name, soup.status) == ("lenet5_full_digits_soup", "FINISHED")
    with inside(store.folder):
        capsys.readouterr()
        assert main(["test", f"--ckpt_path=runs:/{soup.run_id}"]) == 0
        assert f"test/acc  {soup.metrics['test/acc']:.4f}\n" in capsys.readouterr().out
        members = [run.run_id for run in (*store.tuned, store.other)]
        table = ensemble(members, baselines=[soup.run_id], views=[1], loading=HERE)
        assert fit(BATCH_NORM, f"--model.weights=runs:/{soup.run_id}", "--trainer.max_epochs=1") == 0
    assert {path.suffix for path in (soup.artifacts / "logits").iterdir()} == {".json", ".safetensors"}
    row = table.lines[-1].row
    assert row.name == "soup of 2"
    names = {line.row.name for line in table.lines[:3]}
    assert names == {"full · tuned · seed 3", "full · tuned · seed 4", "scratch · seed 1"}
    assert (row.kind, row.forward_passes) == ("baseline", 1)
    assert row.correct.mean() == pytest.approx(soup.metrics["test/acc"])
    assert table.lines[-1].mcnemar is not None and table.lines[-2].row.num_models == 3
    assert soup.metrics["best/val/acc"] >= max(run.metrics["best/val/acc"] for run in store.tuned)


def test_where_all_lie_in_other_basins_there_is_none(store: Store) -> None:
    with inside(store.folder):
        before = len(list(store.folder.glob("mlruns/journal/*")))
        with pytest.raises(UsageError, match=r"no soup can be made: in other basins than .*points lost halfway"):
            make_soup([store.base.run_id, store.other.run_id], loading=HERE)
        assert len(list(store.folder.glob("mlruns/journal/*"))) == before


def test_what_cannot_be_averaged_is_refused(store: Store) -> None:
    with inside(store.folder):
        assert fit("--trainer.max_epochs=1", "--recipe=plain") == 0
        plain = next(run for run in tracked_runs(store.folder) if run.name.endswith("plain"))
        for ids, said in (
            ([store.base.run_id], "a soup is of two networks or more"),
            ([store.base.run_id, plain.run_id], "differ in their arch_options; a soup averages weights of one"),
        ):
            with pytest.raises(UsageError, match=said):
                make_soup(ids, loading=HERE)


def test_equal_numbers_are_their_own_average() -> None:
    state = {"weight": torch.randn(1000), "count": torch.tensor(7)}
    averaged = average_of([state] * 7)
    assert torch.equal(averaged["weight"], state["weight"]) and int(averaged["count"]) == 7
    assert averaged["weight"].dtype == torch.float32
