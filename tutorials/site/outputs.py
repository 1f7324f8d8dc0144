"""Show the notebooks' outputs without a CDN, and without this machine's paths: a Sphinx extension.

A Plotly figure in a notebook brings four megabytes of script, or asks a CDN for it. The notebooks
are executed with the second kind, and the address is replaced by that of one file of the site.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plotly.offline import get_plotlyjs

if TYPE_CHECKING:
    from sphinx.application import Sphinx

SCRIPT = "plotly.min.js"
_FROM_CDN = re.compile(r'<script[^>]*src="https://cdn\.plot\.ly/[^"]*"[^>]*></script>')
# What a notebook's first figure does before, and formulas in figures; there are none.
_UNUSED = re.compile(
    r'<script type="module">import "https://cdn\.plot\.ly/[^"]*"</script>'
    r'|<script src="https://cdnjs[^"]*mathjax[^"]*"></script>'
)
# What a path names stays, where it is on this machine goes.
_PLACES = (
    re.compile(r"/[\w./-]+(?=/nnsight_nla/(?:tiny|smollm2)/weights)"),
    re.compile(r"/[\w./-]+(?=/SmolLM2-135M-Instruct)"),
    re.compile(r"/(?:tmp|var|private)/[\w./-]*tmp\w{8}(?=/)"),
)


def setup(app: Sphinx) -> dict[str, bool]:
    """Choose Plotly's renderer, and change the pages; Sphinx calls this."""
    os.environ["PLOTLY_RENDERER"] = "notebook_connected"
    app.connect("html-page-context", _neutral)
    app.connect("build-finished", _copy_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def neutral(html: str, script: str = SCRIPT) -> str:
    """Return the HTML of outputs without this machine's paths, and with one local `script`."""
    for place in _PLACES:
        html = place.sub("…", html)
    html = _FROM_CDN.sub(f'<script src="{script}"></script>', html, count=1)
    return _UNUSED.sub("", _FROM_CDN.sub("", html))


def _neutral(app: Sphinx, _: str, __: str, context: dict[str, Any], ___: Any) -> None:
    if context.get("body"):
        context["body"] = neutral(context["body"], context["pathto"](f"_static/{SCRIPT}", 1))


def _copy_script(app: Sphinx, failed: Exception | None) -> None:
    if failed is None and app.builder.format == "html":
        (Path(app.outdir) / "_static" / SCRIPT).write_text(get_plotlyjs(), "utf-8")
