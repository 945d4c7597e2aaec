"""How a worker goes on with what another process has begun."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lit_cnn.search import worker
from lit_cnn.tracking.journal import Journal, RunHeader


@dataclass(frozen=True)
class PlainSetup:
    options: Any
    data: Any
    trainer: dict[str, Any] = field(default_factory=dict)


def test_a_run_whose_checkpoint_is_at_its_end_is_told_with_its_key_and_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = RunHeader.new("e", "trial 1", "sqlite:///x.db", "parent", "me")
    journal = Journal.create(tmp_path, header)
    tags = {"trial_number": "1"}
    journal.append({"kind": "tags", "values": tags})
    for step in (7, 15):
        journal.log_metrics({"val/loss": 0.5, "val/acc": 0.75}, step)
    journal.close()
    # The trainer has nothing left to train, and calls no `on_train_start`.
    monkeypatch.setattr(worker, "train", lambda *_: SimpleNamespace(metrics={"best/val/acc": 0.75}))
    store = SimpleNamespace(journal_dir=tmp_path)
    data = SimpleNamespace(digests={"val": "digest"}, splits=SimpleNamespace(folds=()))
    setup = PlainSetup(SimpleNamespace(store=store), data)
    jobs, ends = [worker.Job("trial 1", [], "parent", tags, "val/acc", "digest", is_again=True)], []
    link = SimpleNamespace(ask=lambda: jobs.pop() if jobs else None, tell=lambda name, ended: ends.append(ended))
    worker.work(link, lambda arguments: setup)  # type: ignore[arg-type, return-value]
    (outcome,) = [ended.outcome for ended in ends]
    assert (outcome.state, outcome.value, outcome.epochs, outcome.run) == ("complete", 0.75, 2, header.key)
