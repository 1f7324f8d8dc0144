"""Show the notebooks' Plotly figures without a CDN: a Sphinx extension.

A figure in a notebook brings four megabytes of script, or asks a CDN for it. The notebooks are
executed with the second kind, and the address is replaced by that of one file of the site.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs
from sphinx.application import Sphinx

SCRIPT = "plotly.min.js"
_FROM_CDN = re.compile(r'<script[^>]*src="https://cdn\.plot\.ly/[^"]*"[^>]*></script>')
# Formulas in figures; there are none.
_MATHJAX = re.compile(r'<script src="https://cdnjs[^"]*mathjax[^"]*"></script>')


def setup(app: Sphinx) -> dict[str, bool]:
    """Choose Plotly's renderer, and replace its script; Sphinx calls this."""
    os.environ["PLOTLY_RENDERER"] = "notebook_connected"
    app.connect("html-page-context", _local_script)
    app.connect("build-finished", _copy_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _local_script(app: Sphinx, _: str, __: str, context: dict[str, Any], ___: Any) -> None:
    body = context.get("body")
    if not body or not _FROM_CDN.search(body):
        return
    source = context["pathto"](f"_static/{SCRIPT}", 1)
    body = _FROM_CDN.sub(f'<script src="{source}"></script>', body, count=1)
    context["body"] = _MATHJAX.sub("", _FROM_CDN.sub("", body))


def _copy_script(app: Sphinx, failed: Exception | None) -> None:
    if failed is None and app.builder.format == "html":
        (Path(app.outdir) / "_static" / SCRIPT).write_text(get_plotlyjs(), "utf-8")
