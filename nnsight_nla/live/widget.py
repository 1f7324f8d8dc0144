"""Show a session in a notebook: the page in a cell, next to the models that are loaded there.

Type::

    from nnsight_nla import live

    live.view(model, nla, "The Eiffel Tower is in the city of")

The kernel carries the messages, so it also works where the notebook runs on another machine. The
work is done on a thread of its own, so a click is answered while no cell runs and while one does.
While the page runs a prompt, patches or steers, do not trace the same model in a cell: nnsight runs
one trace per model at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import view as pages
from ..errors import NLAError
from .session import Client, Session

if TYPE_CHECKING:
    from ..explanation.protocols import ExplainsAndReconstructs
    from ..models.target import Target

_HERE = Path(__file__).parent


def view(
    model: Target,
    nla: ExplainsAndReconstructs | Sequence[ExplainsAndReconstructs],
    prompt: Any = None,
    *,
    remote: bool = False,
) -> Any:
    """Return a widget that explains the tokens that are clicked.

    Args:
        model: The target, an nnsight model or a `TransformerBridge`.
        nla: Its NLA, or several, one for each layer.
        prompt: A text to begin with: a string, token ids, or a list of chat messages. Others can be
            typed into the page.
        remote: Run the target on the configured NDIF host.

    Returns:
        An anywidget, with its `Session` as ``.session``; ``.close()`` ends both.

    Raises:
        NLAError: anywidget is missing, an NLA does not read the model, or `prompt` is not one.
    """
    session = Session(model, nla, remote=remote)
    try:
        made = _kind()(session)
        if prompt is not None:
            session.open(prompt)
    except BaseException:
        session.close()
        raise
    return made


@cache
def _kind() -> type[Any]:
    """Return the class of the widget, which needs anywidget."""
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise NLAError(
            "The live page in a notebook needs the package anywidget: "
            "pip install 'nnsight-nla[view]'."
        ) from error

    class LivePage(anywidget.AnyWidget):
        """The page of a session in a notebook."""

        _esm = f"{pages.script()}\n{(_HERE / 'widget.js').read_text('utf-8')}"
        style = traitlets.Unicode(pages.style()).tag(sync=True)
        title = traitlets.Unicode("Look around").tag(sync=True)

        def __init__(self, session: Session) -> None:
            super().__init__()
            self.session = session
            self._views: dict[str, Client] = {}
            self.on_msg(self._received)

        def _received(self, _: Any, content: Any, __: Any) -> None:
            """Take what a view of this widget sends: its first message is empty, its last "bye"."""
            if not isinstance(content, dict) or not isinstance(content.get("view"), str):
                return
            name, message = content["view"], content.get("message")
            if message == "bye":
                client = self._views.pop(name, None)
                if client is not None:
                    client.close()
            elif message is None:
                self._views[name] = self.session.connect(partial(self._sent, name))
            elif name in self._views:
                self._views[name].handle(message)

        def _sent(self, name: str, message: dict[str, Any]) -> None:
            self.send({"view": name, "message": message})

        def close(self) -> None:
            """End the session, and the page with it."""
            self.session.close()
            super().close()

    return LivePage
