"""Configuration of the documentation: `make docs` builds it offline, and warnings are errors."""

from __future__ import annotations

import os
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from generate.commands import write_command_pages  # noqa: E402
from generate.copies import write_copies  # noqa: E402
from generate.data import write_data_pages  # noqa: E402
from generate.errors import write_error_page  # noqa: E402
from generate.names import linked, write_name_pages  # noqa: E402
from generate.results import write_result_page  # noqa: E402

project = "fewtune"
author = "the authors of fewtune"
release = metadata.version("fewtune")
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_gallery.gen_gallery"]
exclude_patterns = [
    "generate",
    "learn/scripts",
    "**/*.ipynb",
    "learn/gallery/*.py",
    "sg_execution_times.rst",
    "**/sg_execution_times.rst",
]
default_role = "code"
smartquotes = False  # `--out` in a text is no dash
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "fewtune"
html_favicon = "static/favicon.svg"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_show_sourcelink = False
html_copy_source = False

# The tutorials run in `make tutorials` alone; `make docs` shows their text and what they left when they ran last.
sphinx_gallery_conf = {
    "examples_dirs": "learn/scripts",
    "gallery_dirs": "learn/gallery",
    "filename_pattern": r"\.py$" if os.environ.get("FEWTUNE_TUTORIALS") else r"^none$",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 10_000,
    "abort_on_example_error": True,
    "within_subsection_order": "generate.tutorials.Numbered",
    "reset_modules": ("matplotlib", "generate.tutorials.set_style"),
    "capture_repr": ("_repr_html_",),  # a figure or a list of ticks is shown as a picture, not as its address in memory
    "image_srcset": ["2x"],
    "write_computation_times": False,
}

# Folder -> options -> the navigation of its pages.
NAVIGATIONS: dict[str, dict[str, str]] = {}


def setup(app: Any) -> None:
    app.connect("builder-inited", generate, priority=100)
    app.connect("source-read", link_names)
    app.connect("html-page-context", share_navigation, priority=100)
    app.connect("autodoc-process-docstring", quote_learned)
    app.connect("build-finished", copy_pages)


def generate(app: Any) -> None:
    folder = HERE / "reference" / "generated"
    write_command_pages(folder / "commands")
    write_name_pages(folder / "names")
    write_error_page(HERE.parent, folder / "errors.md")
    write_result_page(HERE.parent / "benchmarks", folder / "results.md")
    write_data_pages(HERE.parent / "data", folder / "data")


def link_names(app: Any, name: str, content: list[str]) -> None:
    if name == "reference/api":
        content[0] = linked(content[0])


def share_navigation(app: Any, name: str, template: str, context: dict[str, Any], document: Any) -> None:
    """One navigation for all pages of a generated folder: making it anew for each is a third of a build."""
    folder = name.rpartition("/")[0]
    if folder in ("reference/generated/names", "reference/generated/commands") and not name.endswith("/index"):
        made = NAVIGATIONS.setdefault(folder, {})
        whole = context["toctree"]

        def toctree(**options: Any) -> str:
            key = repr(sorted(options.items()))
            if key not in made:
                made[key] = whole(**options)
            return made[key]

        context["toctree"] = toctree


def quote_learned(app: Any, kind: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    # `classes_` without quotes would be a link in reStructuredText.
    lines[:] = [re.sub(r"(?<![`\w])([a-z]\w*_)(?![\w`])", r"``\1``", line) for line in lines]


def copy_pages(app: Any, failed: Exception | None) -> None:
    if failed is None and app.builder.format == "html":
        pages = {name: Path(app.env.doc2path(name)) for name in app.env.found_docs}
        write_copies(pages, Path(app.outdir))
