"""How the site is made of these pages: `make docs`."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import stringify_signature

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the reference is that of this checkout, whatever is installed

from servicegroup._version import __version__  # noqa: E402

project = "servicegroup"
author = project_copyright = "The servicegroup authors"
release = __version__

# No intersphinx: it would fetch the inventories of others at each build.
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"servicegroup {release}"
html_static_path = ["_static"]
html_logo = html_favicon = "_static/logo.svg"
html_copy_source = False

myst_enable_extensions = ["colon_fence"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3

# Docstrings are written for those who read the code, too: one backtick is code, and a link where
# it names something that the reference has.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
add_module_names = False
maximum_signature_line_length = 90
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # else a property that is named there is described twice


class Ways(SphinxDirective):
    """A mermaid diagram of states as a table: to draw it, a reader would load a script."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        ways = [re.fullmatch(r"\s*(\S+) --> (\w+)(?:: (.*))?", line) for line in self.content]
        rows = [f"| {one[1]} | {one[2]} | {one[3] or ''} |" for one in ways if one]
        table = ["| from | to | when |", "|---|---|---|", *rows]
        return self.parse_text_to_nodes("\n".join(table).replace("[*]", ""))


# What autodoc prints of defaults, and of a ParamSpec, and what it means.
PRINTED = {"= NOTHING": "= ...", "[~P]": "...", "~typing.~P": "object"}


def signature(*arguments: object) -> tuple[str, object] | None:
    _app, what, name, thing, _options, text, returned = arguments
    if text is None:
        return None
    if what == "class" and callable(thing):
        # Autodoc takes the one of `__new__`, which ours have for their subclasses' sake.
        text = stringify_signature(inspect.signature(thing), show_return_annotation=False)
        if str(name).startswith("servicegroup.events.") or text.startswith(("(*args", "(*_args")):
            text = ""  # made by the group, or by a subclass
    for printed, meant in PRINTED.items():
        text = str(text).replace(printed, meant)
    return str(text), returned


def as_rst(*arguments: object) -> None:
    """Docstrings as they are here: names are to be links, and `Service`s has an s outside."""
    lines = arguments[-1]
    assert isinstance(lines, list)
    text = re.sub(r"`([^`]+)`(?=(\w?))", role, "\n".join(lines))
    lines[:] = text.split("\n")


def role(code: re.Match[str]) -> str:
    name, letter = code.groups()
    kind = ":py:meth:" if name.endswith("()") else ":py:obj:"
    everywhere = "." if re.fullmatch(r"[A-Z]\w+", name) else ""  # else in this class and module
    return f"{kind}`{everywhere}{name.removesuffix('()')}`" + ("\\ " if letter else "")


def within_the_site(_app: Sphinx, _page: str, source: list[str]) -> None:
    """The changelog is a page here, and a file above these where they are read without a site."""
    source[0] = source[0].replace("](../CHANGELOG.md)", "](changelog.md)")


def setup(app: Sphinx) -> None:
    app.add_directive("mermaid", Ways)
    app.connect("source-read", within_the_site)
    app.connect("autodoc-process-docstring", as_rst, priority=400)  # napoleon's is 500
    app.connect("autodoc-process-signature", signature)
