"""The documentation as a site: `make docs` writes it to docs/_build, to be opened from there.

The source folder is the repository's root, so that a link between docs/, notebooks/ and CHANGELOG.md is the same on the
site and where the files are read as they are. Nothing is fetched, neither here nor by the pages.
"""

import contextlib
import io
import json
import os
import statistics
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import lit_cnn

ROOT = Path(__file__).resolve().parent.parent

project = "lit_cnn"
author = "the authors of lit_cnn"
version = release = lit_cnn.__version__
root_doc = "docs/index"
include_patterns = ["docs/**", "notebooks/*.ipynb", "tests/benchmarks/results/*.md", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = [".*", "docs/_build", "mlruns", "**/.ipynb_checkpoints"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

# Notebooks are shown as they were committed.
nb_execution_mode = "off"
nb_merge_streams = True
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False
default_role = "code"
highlight_language = "text"
copyright = ""
html_show_copyright = False
html_show_sphinx = False

html_theme = "furo"
html_title = f"lit_cnn {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_redirect"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}


class CommandHelp(SphinxDirective):
    """`{command-help} fit` shows what `lit-cnn fit --help` prints."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Asks the program itself, in this process."""
        from lit_cnn.cli import main

        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([self.arguments[0], "--help"])
        block = nodes.literal_block(text := printed.getvalue().rstrip(), text, classes=["command-help"])
        block["language"] = "text"
        return [block]


class Benchmarks(SphinxDirective):
    """`{benchmarks}` shows the results in tests/benchmarks/results: median and range of each series."""

    def run(self) -> list[nodes.Node]:
        """Reads the files that `make bench` wrote."""
        rows = ["| benchmark | measured | machine, date | load |", "| --- | --- | --- | --- |"]
        folder = ROOT / "tests" / "benchmarks" / "results"
        for file in sorted(folder.glob("*.json")):
            self.env.note_dependency(str(file))
            result = json.loads(file.read_text("utf-8"))
            series = result["figures"] if isinstance(result["figures"], list) else [result["figures"]]
            link = f"[{result['name']}](../tests/benchmarks/results/{file.name})"
            measured = "; ".join(text for one in series for text in _series(one))
            machine = f"{result['machine']['processor']}, {result['machine']['cores']} cores, {result['date']}"
            rows.append(f"| {link} | {measured} | {machine} | {result['load_before']:.1f} |")
        return self.parse_text_to_nodes("\n".join(rows))


def _series(figures: dict[str, Any]) -> list[str]:
    """Returns `plain 1,231 [1,207, 1,483] images per second` and the like."""
    found = []
    for name, values in figures.get("measured", {}).items():
        low, middle, high = (f"{number:,.3g}" if number < 100 else f"{number:,.0f}" for number in _range(values))
        found.append(f"{name} {middle} [{low}, {high}] {figures.get('unit', '')}".strip())
    return found


def _range(values: list[float]) -> tuple[float, float, float]:
    return min(values), statistics.median(values), max(values)


def setup(app: Sphinx) -> dict[str, Any]:
    """Adds the directive; help is wrapped to the width of a page."""
    os.environ |= {"COLUMNS": "88", "NO_COLOR": "1"}
    app.add_directive("benchmarks", Benchmarks)
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
