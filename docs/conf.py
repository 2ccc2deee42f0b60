"""Tell Sphinx how the documentation is built: Markdown in, pages out, no network, every warning an error."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

_PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]

project = "edgecore"
author = "The edgecore developers"
project_copyright = author
version = release = _PROJECT["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "generators"]
html_theme = "furo"
html_title = f"edgecore {release}"
html_copy_source = False

myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
autodoc_default_options = {"exclude-members": "__init__, __new__"}

nitpicky = True
# What stands in the signatures of the public names and is described elsewhere, or by nobody here:
# there is no inventory of other projects, since a build must not need a network.
nitpick_ignore_regex = [
    ("py:.*", rf"({'|'.join(sys.stdlib_module_names)})\..*"),
    (
        "py:.*",
        r"edgecore\.(clock|commands|config|drivers|relays|reader|rows|store|testing\.(bench|client))\..*",
    ),
]
# A program's output in a block of commands may look like a prompt.
suppress_warnings = ["misc.highlighting_failure"]
