"""What libraries read from the environment as they are imported, and what whoever started this process left there."""

import os

SPIN_COUNT = "10000"
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


def set_environment() -> None:
    """Sets it, where the user did not; to be called before torch, MLflow and albumentations are imported."""
    # Idle threads of OpenMP would keep the cores that loader processes need. But small layers follow one another faster
    # than a sleeping thread wakes, so libgomp's wait about a tenth of a millisecond: tests/benchmarks/thread_wait.py.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    # albumentations would ask the network for its newest version; MLflow would report its use.
    for name, value in {
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_WAIT_POLICY": "PASSIVE",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        # Lightning's own use of jsonargparse.
        "JSONARGPARSE_DEPRECATION_WARNINGS": "off",
    }.items():
        os.environ.setdefault(name, value)


def number_said(name: str) -> int | None:
    """Returns a variable of the environment that is a whole number; None where it is not."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else None


def says_one_of_several() -> bool:
    """Whether the environment gives this process a rank: it may be one of several, or the rank may be left over."""
    return any(number_said(name) is not None for name in _RANKS)


def says_not_first() -> bool:
    """Whether the environment gives this process another rank than the first."""
    return any(number_said(name) for name in _RANKS)
