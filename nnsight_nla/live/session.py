"""A session of a live page: takes messages, does the work on one thread, sends messages.

It knows no transport: `server` connects it to WebSockets, `widget` to a notebook::

    session = Session(model, nla)
    client = session.connect(print)               # a run message for each run that there is
    client.handle({"type": "open", "id": 1, "text": "The Eiffel Tower is in"})
    client.handle({"type": "explain", "id": 2, "run": 0, "positions": [3, 4]})

==========  =====================================  ==============================================
type        fields                                 is answered by
==========  =====================================  ==============================================
`open`      text                                   ``run`` for each layer
`explain`   run, positions, samples                ``queued``, ``text`` while it is generated,
                                                   ``token`` with everything about it
`compare`   a: [run, position], b                  ``result``: texts, cosine
`patch`     source: [run, position], target,       a new ``run``; ``result``: run, cell, kl, next
            layer
`steer`     run, position, text, dose              ``result``: continuations, next, explanation
`cancel`    the id of another message              ``cancelled``
==========  =====================================  ==============================================

Every message ends with ``done``, ``cancelled`` or ``error``. All clients see all runs and texts; a
message has an ``id`` only where its own client asked. Positions that wait are explained together,
in batches to which each waiting request contributes in turn.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch

from ..errors import NLAError, shown
from ..experiments.forward import Edit, find_sites
from ..view.escaping import readable, visible
from .cards import cards
from .messages import MessageError, dose_of, pair_of, parsed, samples_of, text_of
from .runs import Run, Runner, changed_next

if TYPE_CHECKING:
    from ..explanation.protocols import ExplainsAndReconstructs
    from ..verbalize.streaming import TextSoFar

Send = Callable[[dict[str, Any]], None]
"""Takes a message for one client; called on any thread, and must return at once."""

MOST_WAITING = 256
"""The most requests that wait at once."""
MOST_RUNS = 64
"""The most runs of a session."""
_MOST_ROWS = 32
"""The most positions in one batch, so that the next click does not wait long."""
_LONGEST = 20_000
_log = logging.getLogger(__name__)


class Cancelled(Exception):  # noqa: N818  (It is no error.)
    """A request was cancelled."""


@dataclass(eq=False)
class Client:
    """One page that is connected."""

    session: Session
    """The session."""
    send: Send
    """Takes its messages."""

    def handle(self, raw: str | bytes | Mapping[str, Any]) -> None:
        """Take a message; whatever is wrong with it is answered by a message."""
        self.session.handle(self, raw)

    def close(self) -> None:
        """Disconnect: what it waited for is dropped, what is being explained is finished."""
        self.session.disconnect(self)


@dataclass(eq=False)
class Request:
    """A message that was accepted."""

    client: Client
    """Who asked."""
    id: int
    """The number that the client gave it."""
    kind: str
    """Its type."""
    message: Mapping[str, Any]
    """The message."""
    run: Run | None = None
    """For `explain`: the run."""
    samples: int = 1
    """For `explain`: texts per position."""
    left: deque[int] = field(default_factory=deque[int])
    """For `explain`: the positions that wait."""
    running: int = 0
    """For `explain`: the number of positions that are being explained."""
    state: str = "open"
    """``open``, ``cancelled`` or ``ended``."""


@dataclass(frozen=True)
class _Unit:
    """One position to explain, for one request."""

    request: Request
    run: Run
    position: int
    samples: int


class Session:
    """The runs of one target, and the work that its clients ask for."""

    def __init__(
        self,
        model: Any,
        nla: ExplainsAndReconstructs | Sequence[ExplainsAndReconstructs],
        *,
        remote: bool = False,
        setup: str = "",
    ) -> None:
        """Check that the NLAs read the model; loads no weights.

        Args:
            model: The target, an nnsight model or a `TransformerBridge`.
            nla: Its NLA, or several, one for each layer.
            remote: Run the target on the configured NDIF host.
            setup: The lines of code that load `model` and `nla`, for the code on a card.

        Raises:
            NLAError: An NLA does not read the model.
        """
        several = nla if isinstance(nla, list | tuple) else [nla]
        self.runner = Runner(model, cast("Any", several), remote=remote)
        self._setup = setup
        self.runs: dict[int, Run] = {}
        self._clients: list[Client] = []
        self._waiting: deque[Request] = deque()
        self._open: dict[tuple[int, int], Request] = {}
        self._changed = threading.Condition(threading.RLock())
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="nnsight-nla view", daemon=True)
        self._worker.start()

    def open(self, prompt: Any) -> list[Run]:
        """Run a prompt on the caller's thread, for the start of a session.

        Args:
            prompt: A string, token ids, or a list of chat messages.

        Raises:
            NLAError: `prompt` is not a prompt, or it is longer than the model's context.
        """
        runs = self.runner.open(prompt)
        for run in runs:
            self._add(run)
        return runs

    def connect(self, send: Send) -> Client:
        """Connect a client: it gets every run, then every message that follows."""
        client = Client(self, send)
        with self._changed:
            for run in self.runs.values():
                self._deliver(client, _run_message(run))
            self._clients.append(client)
        return client

    def disconnect(self, client: Client) -> None:
        """Send nothing more to a client, and drop what it waited for.

        A page that comes back asks for it again. Texts that are being generated are finished, so
        that they are there then.
        """
        with self._changed:
            if client in self._clients:
                self._clients.remove(client)
            for request in [each for each in self._waiting if each.client is client]:
                request.left.clear()
                self._waiting.remove(request)
                if not request.running:
                    self._end(request, None)

    def close(self) -> None:
        """Stop the worker; what waits is dropped."""
        with self._changed:
            self._closed = True
            for request in self._open.values():
                request.state = "cancelled"
            self._waiting.clear()
            self._changed.notify_all()
        self._worker.join(timeout=30)

    def handle(self, client: Client, raw: str | bytes | Mapping[str, Any]) -> None:
        """Take a message of a client; see `Client.handle`."""
        number = None
        try:
            message = parsed(raw)
            number = message["id"]
            if message["type"] == "cancel":
                self._cancel(client, number)
            else:
                self._accept(client, message)
        except MessageError as error:
            self._answer(client, {"type": "error", "message": str(error)}, error.id or number)
        except NLAError as error:
            self._answer(client, {"type": "error", "message": str(error)}, number)

    # ---- accepting ------------------------------------------------------------------------------

    def _accept(self, client: Client, message: dict[str, Any]) -> None:
        request = Request(client, message["id"], message["type"], message)
        key = id(client), request.id
        with self._changed:
            if key in self._open:
                raise MessageError(f"id={request.id}: the request of that id is not done yet.")
            if len(self._open) >= MOST_WAITING:
                raise MessageError(
                    f"Too many requests: {len(self._open)} are waiting, and no more than "
                    f"{MOST_WAITING} can. Send this one again when some of them are done."
                )
            self._check(request)
            before = sum(max(1, len(each.left)) for each in self._waiting)
            for place, position in enumerate(request.left):
                queued = {"type": "queued", "position": position, "before": before + place}
                self._answer(client, queued, request.id)
            self._open[key] = request
            self._waiting.append(request)
            self._changed.notify_all()

    def _check(self, request: Request) -> None:
        """Refuse what cannot be done, before it waits."""
        message, kind = request.message, request.kind
        if kind == "explain":
            run = request.run = self._run(message.get("run"))
            request.samples = samples_of(message)
            given = message.get("positions")
            if not isinstance(given, list) or not given:
                raise MessageError(f"positions={shown(given)}: expected a list of positions.")
            request.left.extend(dict.fromkeys(map(run.check, cast("list[Any]", given))))
        elif kind == "open":
            text_of(message)
        elif kind == "steer":
            self._cell((message.get("run"), message.get("position")))
            text_of(message)
            dose_of(message)
        else:
            for name in ("a", "b") if kind == "compare" else ("source", "target"):
                self._cell(pair_of(message, name))

    def _cancel(self, client: Client, number: int) -> None:
        with self._changed:
            request = self._open.get((id(client), number))
            if request is None:
                return
            request.state = "cancelled"
            request.left.clear()
            if request in self._waiting:
                self._waiting.remove(request)
                if not request.running:
                    self._end(request, {"type": "cancelled"})

    def _run(self, number: object) -> Run:
        run = self.runs.get(number) if isinstance(number, int) else None
        if run is None:
            raise MessageError(f"run={shown(number)}: there is no such run.")
        return run

    def _cell(self, given: tuple[Any, Any]) -> tuple[Run, int]:
        run = self._run(given[0])
        return run, run.check(given[1])

    # ---- working --------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                request = self._waiting[0]
                units = self._next_units() if request.kind == "explain" else []
                if not units:
                    self._waiting.popleft()
            if units:
                self._explain_all(units)
            else:
                self._run_request(request)

    def _next_units(self) -> list[_Unit]:
        """Take positions of the requests that wait for the same NLA, one of each in turn."""
        first = cast("Run", self._waiting[0].run)
        asking = [
            each for each in self._waiting if each.run is not None and each.run.nla is first.nla
        ]
        size = min(_MOST_ROWS, first.nla.batch_size)
        units: list[_Unit] = []
        while asking and len(units) < size:
            for request in asking[: size - len(units)]:
                position = request.left.popleft()
                request.running += 1
                units.append(_Unit(request, cast("Run", request.run), position, request.samples))
            asking = [each for each in asking if each.left]
        taken = dict.fromkeys(unit.request for unit in units)
        for request in taken:
            self._waiting.remove(request)
        self._waiting.extend(request for request in taken if request.left)
        return units

    def _explain_all(self, units: list[_Unit]) -> None:
        """Explain positions, and end the requests that have no others; never raises."""
        try:
            self._explain(units)
            failed: dict[Request, str] = {}
        except Exception as error:
            if len({(unit.run, unit.position, unit.samples) for unit in units}) > 1:
                for unit in units:  # One at a time: the failure of one is not that of the others.
                    self._explain_all([unit])
                return
            failed = dict.fromkeys((unit.request for unit in units), _said(error))
        with self._changed:
            for unit in units:
                unit.request.running -= 1
            for request in dict.fromkeys(unit.request for unit in units):
                if request in failed and request.state == "open":
                    self._answer(
                        request.client, {"type": "error", "message": failed[request]}, request.id
                    )
                    request.state = "failed"
                if not request.running and not request.left:
                    ends = {"open": "done", "cancelled": "cancelled"}.get(request.state)
                    self._end(request, None if ends is None else {"type": ends})

    def _explain(self, units: Sequence[_Unit]) -> None:
        """Explain positions, send their texts as they grow, then their records.

        Raises:
            NLAError: Generating failed.
        """
        wanted: dict[tuple[int, int], list[_Unit]] = {}
        groups: dict[tuple[Run, int], dict[int, None]] = {}
        for unit in units:
            capture = unit.run.capture(unit.samples)
            wanted.setdefault((id(capture), unit.position), []).append(unit)
            groups.setdefault((unit.run, unit.samples), {})[unit.position] = None

        sent: dict[tuple[int, int], str] = {}

        def on_text(so_far: TextSoFar) -> Any:
            key = id(so_far.capture), so_far.row
            alive = [unit for unit in wanted[key] if unit.request.state == "open"]
            if not alive:
                return "stop"
            text = readable(so_far.text, _LONGEST) if so_far.sample == 0 else ""
            if text and text != sent.get(key):
                sent[key] = text
                message = {"type": "text", "run": alive[0].run.number, "position": so_far.row}
                self._tell({**message, "text": text}, [unit.request for unit in alive])
            return None

        handles = [run.handle(list(rows), samples) for (run, samples), rows in groups.items()]
        cast("Any", units[0].run.nla).resolve(handles, on_text=on_text)
        for (run, samples), rows in groups.items():
            capture = run.capture(samples)
            settled = [row for row in rows if capture.settled(row)]
            if not settled:
                continue
            for position, record in cards(run, settled, samples, self._setup).items():
                run.records[position] = record
            tokens = run.side()["tokens"]
            for position in settled:
                message = {"type": "token", "run": run.number, "position": position}
                asked = [unit.request for unit in wanted[id(capture), position]]
                self._tell({**message, "token": tokens[position]}, asked)

    def _run_request(self, request: Request) -> None:
        """Do everything but an explanation; never raises."""
        work = {
            "open": self._open_text,
            "compare": self._compare,
            "patch": self._patch,
            "steer": self._steer,
        }[request.kind]
        try:
            work(request)
            ending = {"type": "done"}
        except Cancelled:
            ending = {"type": "cancelled"}
        except Exception as error:
            ending = {"type": "error", "message": _said(error)}
        with self._changed:
            self._end(request, {"type": "cancelled"} if request.state == "cancelled" else ending)

    def _open_text(self, request: Request) -> None:
        if len(self.runs) >= MOST_RUNS:
            raise NLAError(f"This session holds {MOST_RUNS} runs, and no more. Start another one.")
        runs = self.runner.open(text_of(request.message))
        for run in runs:
            self._add(run, request)

    def _compare(self, request: Request) -> None:
        cells = [self._cell(pair_of(request.message, name)) for name in ("a", "b")]
        self._need(request, cells)
        one, other = (run.handle([position])[0] for run, position in cells)
        nla: Any = cells[0][0].nla
        found = nla.compare(one, other)
        texts = [readable(text or "", _LONGEST) for text in (found.before, found.after)]
        self._result(request, texts=texts, cosine=_finite(found.cosine))

    def _patch(self, request: Request) -> None:
        (source, at), (run, position) = (
            self._cell(pair_of(request.message, name)) for name in ("source", "target")
        )
        if len(self.runs) >= MOST_RUNS:
            raise NLAError(f"This session holds {MOST_RUNS} runs, and no more. Start another one.")
        layer = request.message.get("layer")
        layer = run.layer if layer is None else layer
        patched = self.runner.patched(run, position, source, at, layer)
        self._going(request)
        self._add(patched, request)
        divergence, _ = self.runner.measured(run, patched.edits)
        self._need(request, [(run, position), (patched, position)])
        self._result(
            request,
            run=patched.number,
            cell=[patched.number, position],
            kl=divergence,
            next=self._next(run, patched.last),
        )

    def _steer(self, request: Request) -> None:
        message = request.message
        run, position = self._cell((message.get("run"), message.get("position")))
        dose, nla = dose_of(message), cast("Any", run.nla)
        self._need(request, [(run, position)])
        direction = nla.direction(to=text_of(message), away_from=run.handle([position])[0])
        direction = direction.detach().as_subclass(torch.Tensor).float().cpu()
        value = run.residuals[position] + dose * direction
        (site,) = find_sites(run.target.model, "residual", run.layer).values()
        edits = run.edited(Edit(0, position, site, value))
        divergence, logits = self.runner.measured(run, edits)
        self._going(request)
        continuations: list[dict[str, Any]] = []
        for amount, written in ((0.0, run.edits), (dose, edits)):
            text = self.runner.continued(run, written)
            if text is not None:
                continuations.append({"dose": amount, "text": readable(text, _LONGEST)})
            self._going(request)
        thought = nla.explain(value, tokens=run.span.tokens[position], positions=position)
        nla.resolve(thought)
        self._result(
            request,
            continuations=continuations,
            kl=divergence,
            next=self._next(run, logits),
            explanation=readable(thought.text, _LONGEST),
        )

    def _need(self, request: Request, cells: Sequence[tuple[Run, int]]) -> None:
        """Explain these positions first, those of one NLA together."""
        by_nla: dict[int, list[_Unit]] = {}
        for run, position in cells:
            by_nla.setdefault(id(run.nla), []).append(_Unit(request, run, position, 1))
        for units in by_nla.values():
            self._explain(units)
        self._going(request)

    def _next(self, run: Run, logits: torch.Tensor) -> list[tuple[str, float, float]]:
        """Return the likeliest next tokens of a run before and after, with their probabilities."""
        found = changed_next(run.target.model.tokenizer, run.last, logits)
        return [(visible(token), before, after) for token, before, after in found]

    def _going(self, request: Request) -> None:
        if request.state != "open":
            raise Cancelled

    def _add(self, run: Run, request: Request | None = None) -> None:
        with self._changed:
            self.runs[run.number] = run
            self._tell(_run_message(run), [] if request is None else [request])

    # ---- sending --------------------------------------------------------------------------------

    def _result(self, request: Request, **fields: Any) -> None:
        message = {"type": "result", "kind": request.kind, **fields}
        self._answer(request.client, message, request.id)

    def _end(self, request: Request, message: dict[str, Any] | None) -> None:
        request.state = "ended"
        self._open.pop((id(request.client), request.id), None)
        if message is not None:
            self._answer(request.client, message, request.id)

    def _answer(self, client: Client, message: dict[str, Any], number: int | None) -> None:
        """Send a message to the client that asked, with the id of its request."""
        if client in self._clients:
            self._deliver(client, message if number is None else {**message, "id": number})

    def _tell(self, message: dict[str, Any], asked: Sequence[Request]) -> None:
        """Send a message to every client, with the id of its request to who asked."""
        ids = {id(request.client): request.id for request in asked}
        for client in list(self._clients):
            own = ids.get(id(client))
            self._deliver(client, message if own is None else {**message, "id": own})

    def _deliver(self, client: Client, message: dict[str, Any]) -> None:
        try:
            client.send(message)
        except Exception:
            _log.warning("a client could not be reached and was disconnected", exc_info=True)
            self.disconnect(client)


def _run_message(run: Run) -> dict[str, Any]:
    return {"type": "run", "run": run.number, "prompt": run.prompt, "reading": run.side()}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _said(error: Exception) -> str:
    """Return what a page shows of an error; one that is not the package's own is logged."""
    if isinstance(error, NLAError):
        return str(error)
    _log.error("a request of a live page failed", exc_info=error)
    return f"{type(error).__name__}: {error}"[:1000]
