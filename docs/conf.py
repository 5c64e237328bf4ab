"""How Sphinx builds the documentation. Nothing is fetched from a network; the version is the package's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddpm_cli import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "ddpm"
author = "the ddpm authors"
project_copyright = f"2026, {author}"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # [text](page.md#heading) works, and a heading that is not there is a warning

html_theme = "furo"
html_title = f"ddpm {release}"

autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False  # what stands before the colon of "Returns: (B,), nats: ..." is prose, not a class

# A reference to a function of ours that is not there is a warning. Classes are exempt, since every annotation in a
# signature is a reference to one; so are the names of other libraries, which have no page here.
nitpicky = True
nitpick_ignore_regex = [(r"py:class", r".*"), (r"py:.*", r"(?!ddpm_cli\b).*")]


def _keep_property_prose(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    # Napoleon takes the first words of a property's docstring, up to a colon, for its type; an empty comment stops it.
    if what == "property":
        lines[:0] = ["..", ""]


def setup(app: Sphinx) -> None:
    """Called by Sphinx; runs the handler before napoleon's own (priority 500)."""
    app.connect("autodoc-process-docstring", _keep_property_prose, priority=100)
