"""Whatever holds a trained network, ready to classify images: a run, a checkpoint, an export."""

from pathlib import Path

from lit_cnn.core.errors import UsageError
from lit_cnn.evaluation.members import is_fold_set, networks_of
from lit_cnn.evaluation.predictor import Predictor, checkpoint_classifier, mean_of
from lit_cnn.exports.formats import load_folder
from lit_cnn.portable import ImageClassifier, export_folder
from lit_cnn.tracking import queries, registry, resolve_store
from lit_cnn.tracking.run import Run, run_in
from lit_cnn.training.weights import checkpoint_of_run


def load(source: Run | str | Path, tracking_uri: str | None = None) -> Predictor:
    """Loads a trained network to classify images with it.

    Args:
        source: A run or its id, of which 6 characters will do, as it is or as `runs:/ID`: of one with folds it is the
            mean of its networks; a checkpoint's file; a folder that `export` wrote; `models:/NAME@ALIAS` or
            `models:/NAME/VERSION`.
        tracking_uri: The MLflow store of runs and models; see `resolve_store`.

    Raises:
        UsageError: If it is not there, or is not as it was written.

    Example:
        >>> network = lit_cnn.load(run)
        >>> network.predict(image).label in network.class_names
        True
    """
    return Predictor(_classifier(source, tracking_uri))


def _classifier(source: Run | str | Path, tracking_uri: str | None) -> ImageClassifier:
    path = _place(source, tracking_uri)
    if isinstance(path, list):
        return mean_of([checkpoint_classifier(each) for each in path])
    return checkpoint_classifier(path) if path.is_file() else load_folder(export_folder(path))


def _place(source: Run | str | Path, tracking_uri: str | None) -> Path | list[Path]:
    """Returns the checkpoint or the folder of an export; several checkpoints for a run of folds."""
    if isinstance(source, Run) and source.checkpoint is not None and source.checkpoint.is_file():
        return source.checkpoint  # here before MLflow has it
    text = source.id if isinstance(source, Run) else str(source)
    if text.startswith("models:/"):
        return registry.registered_model(resolve_store(tracking_uri), text)
    path = Path(text).expanduser()
    if path.exists():
        return path
    run_id = run_in(text)
    if run_id is not None and not isinstance(source, Path):
        store = resolve_store(tracking_uri)
        (run,) = queries.find_runs(store, [run_id.partition("/")[0]])
        if not is_fold_set(run):
            return checkpoint_of_run(store, run_id)
        return [checkpoint_of_run(store, network.run_id) for network in networks_of(store, run)]
    advice = "give a run or its id, a checkpoint's file, a folder that export wrote, or models:/NAME@ALIAS"
    raise UsageError("source", text, "no such folder, file or run", advice)
