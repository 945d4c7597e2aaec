"""Puts configs/ into the wheel as lit_cnn/configs; all else about the package is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Builds the package with its configurations; an editable install finds them in the checkout."""

    def run(self) -> None:
        """Copies them after the modules."""
        super().run()
        if not self.editable_mode:
            place = Path(self.build_lib, "lit_cnn", "configs")
            shutil.rmtree(place, ignore_errors=True)  # what an earlier build has left
            shutil.copytree("configs", place)


setup(cmdclass={"build_py": BuildWithConfigs})
