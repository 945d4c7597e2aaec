"""What a search hands out, after more trials than at first too."""

from pathlib import Path

from lit_cnn.search.desk import SearchDesk
from lit_cnn.search.space import read_space
from lit_cnn.search.study import Outcome, Plan, Study
from lit_cnn.search.worker import Ended, Job


def test_new_seeds_belong_to_the_trial_whose_values_they_have(tmp_path: Path) -> None:
    space = read_space("model.lr: [0.1, 0.2, 0.3, 0.4]", "s.yaml")

    def final_of(trials: int) -> Job:
        desk = SearchDesk(Study(tmp_path, "digest", space, Plan(trials, "grid")), [], "key", "val/acc", "digest")
        while (job := desk.ask()) is not None and job.reports:
            value = float(job.name.split()[1])  # the last one is the best
            desk.tell(job.name, Ended(Outcome("complete", value, 1, 1.0)))
        assert job is not None
        desk.lose(job.name, "killed")
        assert desk.ask() == job
        desk.tell(job.name, Ended(Outcome("complete", 0.5, 1), {"best/val/acc": 0.5}))
        assert list(desk.finals) == [1]
        return job

    first, again, other = final_of(2), final_of(2), final_of(3)
    assert first == again and first.tags == {"final_seed": "1", "final_of": "2"}
    assert other.tags == {"final_seed": "1", "final_of": "3"} and other.name != first.name
