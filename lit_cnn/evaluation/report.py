"""What a run that has ended came to, shown again: in words, as tables, and the page that was stored with it."""

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_cnn.core.errors import UsageError
from lit_cnn.evaluation.members import KINDS
from lit_cnn.evaluation.predict import LOADING, Loading
from lit_cnn.evaluation.run_numbers import Shown, of_children, of_folds, of_network, of_result
from lit_cnn.evaluation.run_pages import write_folds_page, write_network_page
from lit_cnn.evaluation.stored_folds import stored_folds
from lit_cnn.reports.fold_words import fold_sentences
from lit_cnn.reports.page import answer, grid, heading, paragraph
from lit_cnn.reports.result import Result, json_text, text_grid
from lit_cnn.reports.run_words import DESCRIPTION
from lit_cnn.tracking import Store, queries, resolve_store
from lit_cnn.tracking.delivery import local_folder
from lit_cnn.tracking.journal import read_header, read_journal
from lit_cnn.tracking.queries import RunInfo
from lit_cnn.tracking.run import Run, id_of
from lit_cnn.tracking.store import UNFINISHED
from lit_cnn.training.fold_result import FoldResult
from lit_cnn.training.run_report import MISSING, write_page

if TYPE_CHECKING:
    from rich.console import RenderableType

PAGE = "report.html"
_FOLDERS = {"ensemble": "evaluation", "compare": "evaluation", "search": "search", "advice": "advice", "best": "best"}
_FOLDER = "report"
_PARENTS = ("seeds", "best")


@dataclass(frozen=True, eq=False, repr=False)
class RunReport(Result):
    """What a run came to.

    Attributes:
        id: The run's.
        name: Likewise.
        kind: `fit`, `folds`, `seeds`, `ensemble`, `search` and the like.
        said: What it came to in words.
        tables: The same as numbers.
        rows: The numbers in full; see `records`.
        more: Further numbers for `to_json`.
        files: Of the page, the page last; where they can be read now.
        where: Where the page is kept, in words.
        is_new: Whether the page was made now.
        missing: What could not be made of it, with the reason.
        markdown: What a comparison says below its first sentences, up to its second table.
    """

    id: str
    name: str
    kind: str
    said: str
    tables: tuple[Shown, ...]
    rows: tuple[dict[str, Any], ...]
    more: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    where: str = ""
    is_new: bool = False
    missing: tuple[str, ...] = ()
    markdown: str = ""

    @property
    def title(self) -> str:
        """Title of its page."""
        return self.name

    def answer(self) -> str:
        """Returns what it came to."""
        return self.said

    def text(self) -> "Sequence[RenderableType]":
        """Returns the tables."""
        from rich.markdown import Markdown

        grids = [text_grid(each.header, each.rows, [False] * len(each.rows), each.caption) for each in self.tables]
        return [*grids, *([Markdown(self.markdown)] if self.markdown else [])]

    def sections(self) -> list[str]:
        """Returns the tables in HTML."""
        found = []
        for each in self.tables:
            found += [heading(each.title), grid(each.header, each.rows)]
            found += [paragraph(each.caption)] if each.caption else []
        return found

    def records(self) -> list[dict[str, Any]]:
        """Returns a row for each split of a run of one network, each fold, each seed, each line of a comparison."""
        return list(self.rows)

    def to_json(self) -> str:
        """Returns the words and the numbers."""
        about = {"run": self.id, "name": self.name, "kind": self.kind, "answer": self.said}
        return json_text({**about, "rows": self.records(), **self.more})

    def write(self, folder: Path) -> list[Path]:
        """Copies the page and its files."""
        folder.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copyfile(file, folder / file.name)) for file in self.files]


def report(
    run: Run | str,
    *,
    output: Path | str | None = None,
    loading: Loading = LOADING,
    tracking_uri: str | None = None,
) -> RunReport:
    """Returns what a run that has ended came to, with its page: the stored one, or one that is made anew.

    A page is made anew where none is stored, or where something is missing from it: from the logits that are stored
    with the run, the images, and, where there are no logits, the network. Without `output` it is stored with the run.

    Args:
        run: A run, or its id: of one network, of folds, of seeds, an ensemble, a comparison, a search.
        output: Folder of the page and its files.
        loading: How images are read and go through the network, where that is needed.
        tracking_uri: The MLflow store; see `resolve_store`.

    Raises:
        UsageError: If there is no such run, it has not come to its end, or its images are not there.

    Example:
        >>> lit_cnn.report(run).answer()  # doctest: +ELLIPSIS
        '... test images right: ...'
    """
    store = resolve_store(tracking_uri)
    try:
        (found,) = queries.find_runs(store, [id_of(run)])
    except UsageError:  # the store has not taken it yet, or is away
        kept = _from_journal(store, id_of(run))
        if kept is None:
            raise
        return _kept(kept, output)
    if found.status != "FINISHED":
        how = {"RUNNING": "has not come to its end", "KILLED": "was stopped before its end"}.get(found.status, "failed")
        remedy = "the command that began it, with `resume=auto`, goes on"
        raise UsageError("run", found.run_id, f"{found.name} {how}", remedy)
    kind = found.tags.get("kind", "fit")
    folder = _FOLDERS.get(kind, _FOLDER)
    stored = _stored(store, found, folder)
    folds = stored_folds(store, found) if kind == "folds" else None
    said = _said(found.tags) or (" ".join(fold_sentences(folds.facts)) if folds is not None else "")
    if folds is not None:
        numbers = of_folds(found, folds)
    elif kind in KINDS:
        numbers = of_network(found, stored)
    else:
        numbers = of_children(store, found) if kind in _PARENTS and not stored else of_result(kind, stored)
    said, *rest = said.split("\n\n")
    result = RunReport(found.run_id, found.name, kind, said.strip("*"), *numbers, files=stored)
    result = replace(result, markdown=_up_to_second_table(rest))
    if stored and MISSING not in stored[-1].read_text(encoding="utf-8"):
        is_here = local_folder(found.artifact_uri) is not None
        where = str(stored[-1]) if is_here else f"{folder}/{PAGE} among the artifacts of run {found.run_id}"
        return _kept(replace(result, where=where), output)
    return _made(store, found, folds, result, loading, output)


def _kept(result: RunReport, output: Path | str | None) -> RunReport:
    """Returns the result with the page that is stored, copied to where it is asked for."""
    return result if output is None else replace(result, where=str(result.report(output)))


def _from_journal(store: Store, key: str) -> RunReport | None:
    """Returns what the journal has of a run that has ended, by its key; None if there is no such run, or no page."""
    pages = list(store.journal_dir.glob(f"{key}*/{_FOLDER}/{PAGE}")) if key.isalnum() else []
    if len(pages) != 1 or (folder := pages[0].parents[1] / UNFINISHED).exists():
        return None
    tags: dict[str, str] = {}
    for record, _ in read_journal(folder.parent):
        tags |= record["values"] if record["kind"] == "tags" else record.get("tags") or {}
    header = read_header(folder.parent)
    assert header is not None
    files = (*sorted(file for file in pages[0].parent.iterdir() if file != pages[0]), pages[0])
    about = (header.key, header.run_name, tags.get("kind", "fit"), _said(tags))
    return RunReport(*about, (), (), files=files, where=str(pages[0]))


def _made(
    store: Store,
    run: RunInfo,
    folds: FoldResult | None,
    result: RunReport,
    loading: Loading,
    output: Path | str | None,
) -> RunReport:
    """Returns the result with a page that is made now; it is stored with the run unless it is asked for elsewhere."""
    said = [result.said] if result.said else []
    folder = Path(output or tempfile.mkdtemp(prefix="lit_cnn-"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folds is not None:
            files, missing = write_folds_page(store, run, folds, said, loading.root, folder)
        elif result.kind in KINDS:
            files, missing, said = write_network_page(store, run, said, loading, folder)
        elif result.kind in _PARENTS:
            first = [answer(result.said), paragraph(run.tags.get("label", run.name))]
            sections = "\n".join(result.sections())
            files, missing = write_page(run.name, first, [("the runs", lambda: ([], sections))], folder)
        else:
            reason = f"{run.name} is of the kind {result.kind}, and has no page"
            raise UsageError("run", run.run_id, reason, "give a run of lit-cnn fit, ensemble, compare or tune")
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise UsageError("output", folder, reason, "give another folder") from error
    result = replace(result, said=" ".join(said), files=tuple(files), is_new=True, missing=tuple(missing))
    if result.kind in KINDS:
        result = replace(result, tables=of_network(run, files).tables)
    if output is not None:
        return replace(result, where=str(files[-1]))
    _keep(store, run, files)
    shutil.rmtree(folder, ignore_errors=True)
    kept = _stored(store, run, _FOLDER)
    return replace(result, files=kept, where=str(kept[-1]))


def _keep(store: Store, run: RunInfo, files: Sequence[Path]) -> None:
    """Stores the files of a page with its run."""
    root = local_folder(run.artifact_uri)
    try:
        if root is not None and root.parent.parent.is_dir():  # a run that had no file yet has no folder
            root.mkdir(parents=True, exist_ok=True)
        for file in files:
            queries.upload_artifact(store, run, file, _FOLDER)
    except (UsageError, OSError) as error:
        reason = error.reason if isinstance(error, UsageError) else error.strerror
        raise UsageError("output", None, f"the page cannot be kept with the run ({reason})", "give a folder") from error


def _stored(store: Store, run: RunInfo, folder: str) -> tuple[Path, ...]:
    """Returns the files of a run's page, the page last, where they can be read; none if it has no page."""
    names = queries.artifact_names(store, run, folder)
    if PAGE not in names:
        return ()
    target = Path(tempfile.mkdtemp(prefix="lit_cnn-")) if local_folder(run.artifact_uri) is None else None
    ordered = [*sorted(names - {PAGE}), PAGE]
    return tuple(queries.download_artifact(store, run, f"{folder}/{name}", target) for name in ordered)


def _said(tags: Mapping[str, str]) -> str:
    """Returns what a run says of itself in MLflow, without the line about its report."""
    parts = tags.get(DESCRIPTION, "").split("\n\n")
    if parts[-1].startswith("Report: "):
        parts = parts[:-1]
    # Of what is plain text in Markdown's eyes; a table stays one.
    return re.sub(r"\\([\\`*_|<])", r"\1", "\n\n".join(parts))


def _up_to_second_table(paragraphs: Sequence[str]) -> str:
    tables = [place for place, text in enumerate(paragraphs) if text.startswith("|")]
    return "\n\n".join(paragraphs[: tables[1]] if len(tables) > 1 else paragraphs)
