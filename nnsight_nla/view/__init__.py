"""Plain records → HTML. Nothing here knows a model, and nothing here imports the rest of us.

* `explanation(records)`: the table that a handle shows in a notebook.
* `reading(readings)`: one self-contained page with every token of a text, and its explanation
  beside it; two readings stand side by side with their difference marked.
* `frame(page, height)`: such a page inside a notebook's output, in a sandbox of its own.
* `TEMPLATE`: the look of a plotly figure, on light pages and dark ones.

What is shown is untrusted: a model wrote it, about a text that somebody else wrote. So every value
is escaped, the page makes its elements from text nodes only, a content security policy refuses
everything that is not this package's own script and style, and nothing is ever fetched.
"""

from .figure import TEMPLATE
from .page import frame, reading
from .table import explanation

__all__ = ["TEMPLATE", "explanation", "frame", "reading"]
