"""A run's parameters as they are recorded: `section.option`, flat."""

# What decides no weights: with how many processes, where, what is shown and kept.
OF_THE_PLACE: dict[str, frozenset[str]] = {
    "data": frozenset({"num_workers", "root", "cache_gb"}),
    "model": frozenset({"feature_cache_gb"}),
    "trainer": frozenset(
        {
            "default_root_dir",
            "logger",
            "enable_progress_bar",
            "enable_model_summary",
            "log_every_n_steps",
            "profiler",
        }
    ),
    "": frozenset(
        {
            "resume",
            "ckpt_path",
            "checkpoint_seconds",
            "on_full_disk",
            "test_after_fit",
            "log_preview",
            "report",
            "experiment",
            "track",
            "tracking_uri",
            "find_batch_size",
        }
    ),
}


def decides(param: str) -> bool:
    """Whether a run's param, such as `data.batch_size`, has a say in its weights or in which of them are kept."""
    section, dot, name = param.partition(".")
    return name.partition(".")[0] not in OF_THE_PLACE.get(section, ()) if dot else section not in OF_THE_PLACE[""]
