"""Settings of the site: `make docs` builds it from these pages, the notebooks and the docstrings, without a network."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import docstrings  # noqa: E402  files beside this one
from reference import write_pages  # noqa: E402

write_pages(HERE / "reference")

project = "smc-bridge"
version = release = version_of("smc-bridge")
copyright = "the smc-bridge authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
# `tutorials` is a link to the notebooks; whoever checks out links as files finds a text file there.
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

# Pages and notebooks
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Formulas: one file with every glyph as a path, since a browser refuses fonts to a page that is opened as a file.
MATHJAX = "tex-svg-full.js"
_package = find_spec("sphinx-mathjax-offline")
assert _package is not None
assert _package.origin is not None
html_static_path = ["_static", str(Path(_package.origin).parent / "static" / "mathjax" / MATHJAX)]
mathjax_path = MATHJAX
mathjax3_config = {"options": {"enableMenu": False}}

# Docstrings: prose with `code` in single backticks
default_role = "code"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
# Types in signatures are links where a page is about them; what is said about others is on the network, or internal.
nitpick_ignore_regex = [("py:(class|exc)", r".*")]

html_theme = "furo"
pygments_dark_style = "monokai"
html_title = "smc-bridge"
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False


def formulas(app: Any, doctree: nodes.document) -> None:
    """Hand display formulas to MathJax as they are: Sphinx wraps them in environments where `\\tag` is an error."""
    for node in doctree.findall(nodes.math_block):
        if not node.get("no-wrap"):
            node["no-wrap"] = True
            node.children = [nodes.Text(rf"\[{node.astext()}\]")]


def before_napoleon(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """See `docstrings`."""
    lines[:] = docstrings.tidy(what, lines)


def after_napoleon(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """See `docstrings`."""
    lines[:] = docstrings.split(lines)


def skip(app: Any, what: str, name: str, obj: object, skipped: bool, options: object) -> bool | None:
    """Fields of a NamedTuple stand in its docstring already."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app: Any) -> None:
    """What Sphinx calls."""
    app.connect("doctree-read", formulas)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", after_napoleon, priority=600)
