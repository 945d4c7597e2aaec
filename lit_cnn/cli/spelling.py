"""How the command line writes the options that a mistake in Python names."""

from lit_cnn.core.errors import Spelling

OPTIONS_OF_FIT = ("fit", "validate", "test", "check-data", "preview", "advise", "distill", "tune", "best")
"""Commands that take the options of `lit-cnn fit`."""

_OTHER_NAMES = {"seed": "seed_everything"}
_ARGUMENTS = {
    ("configs", "config"): "NAME",
    ("export", "runs"): "RUN",
    ("describe", "arch"): "ARCH",
    ("predict", "folder"): "FOLDER",
    ("predict", "source"): "--model",
}


def spelling_of(command: str) -> Spelling:
    """Returns how a command spells `batch_size`: `--data.batch_size` for fit, `--batch_size` for ensemble.

    Args:
        command: Such as `fit`.
    """
    return lambda option, value: _spelt(command, option, value)


def _spelt(command: str, option: str, value: str) -> str:
    if option == "folder" and command in OPTIONS_OF_FIT:
        return f"FOLDER {value}".strip()
    if (command, option) in _ARGUMENTS:
        return " ".join(filter(None, (_ARGUMENTS[command, option], value)))
    if command in OPTIONS_OF_FIT:
        from lit_cnn.cli.precheck import known_options

        known, name = known_options(), _OTHER_NAMES.get(option, option)
        first = name.partition(".")[0]  # `columns.label`
        sections = ("", "data.", "model.", "trainer.")
        found = next((f"{section}{name}" for section in sections if f"{section}{first}" in known), None)
        if found is not None:
            return f"--{found} {value.lower() if value in ('True', 'False', 'None') else value}".strip()
    return f"--{option} {'' if value == 'True' else value}".strip()
