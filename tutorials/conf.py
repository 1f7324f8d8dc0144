"""Build the site: the tutorials with their outputs, guides, figures, and the API reference.

    sphinx-build -W --keep-going -b html tutorials /tmp/site
    python -m tutorials.site.links /tmp/site

The notebooks are executed, once for each state of the package (`tutorials.site.execution`).
Docstrings are Google style (napoleon) in reST. In reST a name in single backticks is a link where
the reference documents that name, and code otherwise. Building and reading need no network.
"""

import sys
from importlib.metadata import version as installed
from pathlib import Path

from docutils import nodes
from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).parents[1]))

import nnsight_nla
from nnsight_nla.experiments import ablate, patch, steer
from tutorials.site import execution

_LOG = logging.getLogger(__name__)

project = "nnsight_nla"
author = "the nnsight_nla authors"
version = release = installed("nnsight-nla")
project_copyright = "Apache-2.0"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
    "tutorials.site.generated",
    "tutorials.site.outputs",
]
exclude_patterns = ["recipes", "site", "generated/*.md", "**/.ipynb_checkpoints", "_build"]
default_role = "py:obj"
add_module_names = False
toc_object_entries_show_parents = "hide"

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# Which reads defaults in the source; these have options there (`takes_options`) that it cannot see.
for experiment in (ablate, patch, steer):
    experiment.__wrapped__ = len
autoclass_content = "both"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
maximum_signature_line_length = 80

myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(execution.cache())
nb_execution_excludepatterns = execution.not_executed()
nb_execution_timeout = 300
nb_execution_raise_on_error = nb_execution_show_tb = True
nb_merge_streams = True
# Progress bars. What a tutorial wants to show is printed.
nb_output_stderr = "remove"

html_theme = "furo"
html_title = f"nnsight_nla {release}"
html_show_sourcelink = html_copy_source = False
html_show_copyright = False
html_static_path = ["site/static"]
html_css_files = ["site.css"]
# The colours of the reading page (nnsight_nla/view/page.css).
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#4f46e5",
        "color-brand-content": "#4f46e5",
        "color-background-primary": "#fbfaf8",
    },
    "dark_css_variables": {
        "color-brand-primary": "#a5a8ff",
        "color-brand-content": "#a5a8ff",
        "color-background-primary": "#121316",
    },
}


def _indented_is_code(_, doctree):
    """Warn about an indented block that is not code: it has lost its ``::``; an error under -W."""
    if not doctree["source"].endswith(".rst"):
        return
    for quote in doctree.findall(nodes.block_quote):
        if not isinstance(quote.parent, nodes.list_item):
            _LOG.warning(
                "indented, but neither code nor a list (end the line above with '::'): %s",
                quote.astext()[:60],
                location=quote,
            )


def _every_public_name_is_documented(_, env):
    """Warn about public names that are not on any page; an error under -W."""
    described = {name.rpartition(".")[2] for name in env.domains.python_domain.objects}
    described |= {name.rpartition("/")[2] for name in env.all_docs}
    for name in sorted(set(nnsight_nla.__all__) - described - {"__version__"}):
        _LOG.warning("nnsight_nla.%s is public but is not on any page of tutorials/reference", name)


def setup(app):
    """Register the checks; Sphinx calls this."""
    app.connect("doctree-read", _indented_is_code)
    app.connect("env-check-consistency", _every_public_name_is_documented)
