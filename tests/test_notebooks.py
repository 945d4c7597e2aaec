"""The notebooks run from their first cell to their last; as committed, they hold the figures of the long form."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
NO_EXPERIMENT = "your_own_photographs"  # shows the way, with one run
every_notebook = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
# One epoch of four steps.
SHORT_FORM = """
SEEDS = [0, 1]
SHORTER = {
    "trainer.max_epochs": 1, "data.limit_train": 64, "data.batch_size": 16, "data.num_workers": 0,
    "trainer.log_every_n_steps": 1, "trainer.limit_val_batches": 1, "trainer.limit_test_batches": 1,
    "trainer.check_val_every_n_epoch": 1,
}
PICTURES = "pictures"
SIZES = [50]
CYCLES, SWA_START = 1, 1
EPOCHS = 1
SETS = ["digits"]
"""


def parameters(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The one cell that says what can be changed."""
    (cell,) = (cell for cell in book.cells if "parameters" in cell.metadata.get("tags", ()))
    return cell


def test_each_experiment_has_a_notebook() -> None:
    assert len(NOTEBOOKS) == 9 + 1
    assert NO_EXPERIMENT in {file.stem for file in NOTEBOOKS}


@every_notebook
def test_the_committed_notebook_was_run_as_a_whole(file: Path) -> None:
    book = nbformat.read(file, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    text = "".join(output.get("text", "") for output in outputs)
    assert file.stem == NO_EXPERIMENT or re.search(r"\n.*  3  \d", text), "three seeds"
    assert not re.search(r"/(root|home|work|tmp)/", text)


@pytest.mark.slow
@pytest.mark.debian
@pytest.mark.timeout(900)
@every_notebook
def test_the_notebook_runs_in_its_short_form(file: Path, tmp_path: Path) -> None:
    for folder in ("pictures", "mlruns"):  # as in the repository's root
        (tmp_path / folder).mkdir()
    book = nbformat.read(file, as_version=4)
    parameters(book).source += SHORT_FORM
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in outputs)
    if file.stem == NO_EXPERIMENT:
        assert re.search(r"of 72 are wrong\nmlruns/photos/test/", text)
        assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    else:
        assert re.search(r"\n.*  2  \d", text), "two seeds"
        assert list((tmp_path / "pictures").glob("*.png"))
