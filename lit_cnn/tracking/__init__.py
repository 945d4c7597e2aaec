"""Runs and where they are kept; the only part of lit_cnn that imports mlflow, and only when it has to.

    store     which MLflow store, and the folders that belong to it
    names     what MLflow accepts as a name
    journal   what a run logs goes to a local file first
    outbox    a run's files, kept until they are delivered
    progress  how far a journal has come on its way to MLflow
    client    a connection to MLflow
    delivery  carries one journal to MLflow; may be repeated at any point
    sender    the process that does so for all journals, and `lit-cnn sync`
    recorder  what a run logs with; starts the sender and looks after it
    logger    the same for Lightning's Trainer
    queries   finds runs, and their files

Each uses those above it only.
"""

from lit_cnn.tracking.store import Store, check_writable, resolve_store

__all__ = ["Store", "check_writable", "resolve_store"]
