"""Plain records → HTML. This folder uses no model and imports no other module of the package.

* `explanation(records)`: the table of a handle in a notebook.
* `claims(record)`: the parts of an explanation, with a bar for what each carries.
* `reading(readings)`: one self-contained page with every token of a text and the explanations; two
  readings are shown next to each other with their difference marked.
* `live(transport)`: the same page, which reads what is clicked; `script()` and `style()` are its
  parts for a notebook's widget, `side(reading)` and `token(record)` its data.
* `facts(given)`: a table of names and values.
* `document(title, *parts)`: a page of such tables, which runs no script.
* `frame(page, height)`: such a page inside a notebook's output, in a sandbox of its own.
* `fallback(readings)`: the same as a plain table, for code hosts, which take frames out.
* `chart`: heat maps and curves of such a page, as HTML and SVG.
* `TEMPLATE`: the look of a plotly figure, on light and dark pages.

The text is untrusted: a model wrote it, about a text that somebody else wrote. So every value is
escaped, the page makes its elements from text nodes only, a content security policy refuses
everything but this package's own script and style, and nothing is ever fetched.
"""

from .fallback import fallback
from .figure import TEMPLATE
from .page import document, frame, live, reading, script, side, style, token
from .table import claims, explanation, facts

__all__ = [
    "TEMPLATE", "claims", "document", "explanation", "facts", "fallback", "frame", "live",
    "reading", "script", "side", "style", "token",
]  # fmt: skip
