"""`NLA`: the facade. Each method is a few lines that call the module whose idea it is.

model = TransformersModel("Qwen/Qwen3-8B", task="text-generation")
nla = NLA("ceselder/nanonla-l24-av-qwen3-8b")
with model.trace("The Eiffel Tower is in the city of"):
    thought = nla.explain(nla.layer(model).output[0, -1])
print(thought.text)
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from einops import rearrange
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from . import controls as _controls
from . import hosts
from . import remote as _remote
from .arguments import batch_rows, check_sampling, check_vectors, count_samples, flat_texts
from .capture import Capture
from .checkpoint import Checkpoint
from .errors import CheckpointError, InjectionError, NLAWarning
from .explanation import Explanation, captured_rows, provenance
from .injection import Injection
from .loading import load_model, load_tokenizer
from .prompting import Prompt
from .queue import Queue
from .reconstructor import Reconstructor, load_head
from .sampling import Sampling
from .verbalizer import Verbalizer

if TYPE_CHECKING:
    from jaxtyping import Float
    from nnsight import TransformersModel

    from .ndif import HostStatus


class NLA:
    """A verbalizer and a reconstructor of one target's residual stream."""

    def __init__(
        self,
        av: str | Path | TransformersModel,
        *,
        ar: str | Path | TransformersModel | None = None,
        checkpoint: Checkpoint | Injection | str | Path | None = None,
        peft: str | None = None,
        remote: bool = False,
        sampling: Sampling | None = None,
        batch_size: int | Literal["auto"] = "auto",
        **load: Any,
    ) -> None:
        """Read and check sidecar, configuration and tokenizer; weights load at the first text.

        Args:
            av: The verbalizer: a Hub id, a local folder, or a `TransformersModel` you already have.
            ar: The reconstructor, likewise; needed by `reconstruct` only.
            checkpoint: Overrides the sidecar: a `Checkpoint`, an `Injection` (how the vector is
                written, no more), or where another sidecar lies.
            peft: The verbalizer as an adapter (id or folder) on the base model `av`.
            remote: Run the verbalizer on the configured NDIF host; its weights stay there.
            sampling: The default for every `explain`; greedy, 200 new tokens.
            batch_size: Vectors per verbalizer batch.
            load: Goes to nnsight's `TransformersModel` as it is (``dtype=``, ``device_map=``, ...).

        Raises:
            CheckpointError: The checkpoint cannot be found, read, or served as it is.
        """
        self.sampling = check_sampling(sampling) or Sampling()
        where = peft or (av if isinstance(av, str | Path) else hosts.describe(av))
        described = _describe(where, checkpoint)
        tokenizer = load_tokenizer(av, described)
        self.prompt = Prompt.render(described, tokenizer)
        self.checkpoint = _completed(described, self.prompt, tokenizer)
        self.av = load_model(av, tokenizer, peft, load)
        self.remote = remote
        self._verbalizer = Verbalizer(self.av, self.checkpoint, self.prompt, remote=remote)
        self._queue = Queue(self, self._verbalizer, batch_rows(batch_size))
        self._ar_source, self._load = ar, load
        self._reconstructor: Reconstructor | None = None
        self._other_base: weakref.WeakSet[Any] = weakref.WeakSet()
        self.spec = _spec(
            av=av,
            ar=ar,
            checkpoint=checkpoint,
            peft=peft,
            remote=remote,
            sampling=sampling,
            batch_size=batch_size,
            **load,
        )
        self.uid = _remote.enter(self)

    @property
    def hook_name(self) -> str:
        """TransformerLens' name of the residual that is verbalized."""
        return f"blocks.{self.checkpoint.layer}.hook_out"

    @property
    def pending(self) -> tuple[Explanation, ...]:
        """The handles you can still reach that have no text yet, oldest first."""
        return tuple(self._queue.pending())

    @property
    def ar(self) -> TransformersModel:
        """The reconstructor's nnsight model."""
        return self._reconstruct().ar

    def layer(self, model: TransformersModel) -> Any:
        """The envoy of block K of `model`: ``.output`` is the residual, ``[batch, seq, d_model]``.

        Args:
            model: The target. Readable and writable inside its traces.

        Raises:
            InjectionError: `model` is no `TransformersModel`, or has another width or no block K.

        Warns:
            NLAWarning: `model` goes by another name than the one the verbalizer was trained on.
        """
        layer, d_model = self.checkpoint.layer, self.checkpoint.d_model
        if hosts.width(model) != d_model:
            raise InjectionError(
                f"{hosts.describe(model)} has d_model {hosts.width(model)}, the verbalizer reads "
                f"{d_model}. It was trained on {self.checkpoint.base_model or 'another model'}."
            )
        envoy = hosts.block(model, layer)
        name, base = hosts.describe(model), self.checkpoint.base_model
        foreign = bool(base) and Path(base).name.lower() != Path(name).name.lower()
        if foreign and model not in self._other_base:
            self._other_base.add(model)
            warnings.warn(
                f"The verbalizer was trained on the residuals of {base}; this is {name}. Texts for "
                "another model's residuals are not to be trusted.",
                NLAWarning,
                stacklevel=2,
            )
        return envoy

    def positions(
        self, model: TransformersModel, prompts: str | Sequence[Any]
    ) -> list[hosts.Positions]:
        """The real positions of each prompt in a padded batch; see `hosts.positions`."""
        return hosts.positions(model, prompts)

    def explain(
        self,
        vectors: Float[Tensor, "*shape d_model"],
        *,
        tokens: Any = None,
        positions: Any = None,
        samples: int = 1,
        sampling: Sampling | None = None,
    ) -> Explanation:
        """Capture vectors to be explained; the text is made when it is first read.

        Works in any trace, invoke, ``tracer.iter`` step or session, and outside of one; the handle
        needs no ``.save()``. Only type, dtype and width are checked here: a row that is zero, NaN
        or infinite is found later and recorded in ``.errors``.

        Args:
            vectors: Residuals at the output of block K, raw; copied here, so later edits in the
                same trace do not reach the handle.
            tokens: The token each vector was read at (strings or ids), of shape ``*shape``.
            positions: The position of each, of shape ``*shape``; with `tokens` it lets the warnings
                speak of positions, context and quotes.
            samples: Texts per vector; above 1 only with a temperature above 0.
            sampling: How tokens are chosen, for this call.

        Returns:
            A handle of shape ``vectors.shape[:-1]``.

        Raises:
            InjectionError: `vectors` is no floating-point tensor with values, or of another width.
            VerbalizationError: `samples`, `tokens` or `positions` do not fit.
        """
        check_vectors(vectors, self.checkpoint.d_model)
        shape = tuple(vectors.shape[:-1])
        fake = isinstance(vectors, FakeTensor)
        flat = None if fake else rearrange(vectors.detach(), "... d -> (...) d").clone()
        capture = self._capture(flat, shape, tokens, positions, samples, sampling)
        return Explanation(capture, captured_rows(shape))

    def explain_nothing(self) -> Explanation:
        """The null control: the verbalizer's text with nothing written at the marker."""
        blank = torch.zeros(1, self.checkpoint.d_model)
        capture = Capture(self._queue, blank, 1, 1, self.sampling, null=True)
        return Explanation(capture, captured_rows(()))

    def resolve(self, handles: Explanation | Iterable[Explanation] | None = None) -> None:
        """Verbalize what is pending, or only these handles.

        Raises:
            VerbalizationError: Generating failed; settled rows keep their text, the rest wait.
        """
        if handles is None:
            self._queue.resolve([])
        else:
            only = [handles] if isinstance(handles, Explanation) else list(handles)
            self._queue.resolve_only(only)

    def controls(
        self, n: int, *, like: Explanation | Tensor | None = None, seed: int = 0
    ) -> _controls.Controls:
        """Explanations that should know nothing of your vectors: null, random, shuffled.

        Args:
            n: Rows per control.
            like: The vectors (or their explanation) to shuffle and to take the norms from.
            seed: Of the random directions and of the order.
        """
        d_model = self.checkpoint.d_model
        vectors = like.vectors if isinstance(like, Explanation) else like
        if vectors is not None:
            check_vectors(vectors, d_model)
            vectors = rearrange(vectors.detach(), "... d -> (...) d")
        return _controls.controls(self, n, d_model, vectors, seed)

    def reconstruct(self, text: Any) -> Float[Tensor, "*shape d_model"]:
        """Turn text back into vectors with the reconstructor.

        Args:
            text: A string, or nested lists of them.

        Returns:
            Float32 on the CPU, of the text's shape; the direction counts, not the length.

        Raises:
            CheckpointError: This NLA has no reconstructor.
            VerbalizationError: A text is empty.
        """
        flat, shape = flat_texts(text)
        return self._reconstruct().reconstruct(flat).reshape(*shape, self.checkpoint.d_model)

    def info(self) -> dict[str, Any]:
        """What is served and how, as plain data; never loads weights."""
        return {
            "verbalizer": hosts.describe(self.av),
            "weights_loaded": bool(self.av.dispatched),
            "layer": self.checkpoint.layer,
            "d_model": self.checkpoint.d_model,
            "base_model": self.checkpoint.base_model,
            "injection": vars(self.checkpoint.injection),
            "marker": {
                "text": self.checkpoint.marker,
                "id": self.checkpoint.marker_id,
                "left_id": self.checkpoint.left_id,
                "right_id": self.checkpoint.right_id,
                "position": self.prompt.marker_position,
            },
            "prompt_tokens": len(self.prompt.ids),
            "sampling": vars(self.sampling),
            "source": dict(self.checkpoint.source),
        }

    def status(self) -> HostStatus:
        """What the configured NDIF host can do for this NLA right now, in `str()` and as data."""
        from .ndif import status

        return status(self.av, self.checkpoint.base_model)

    def __repr__(self) -> str:
        if self.av is None:
            return f"<NLA of another process, layer={self.checkpoint.layer}>"
        here = "loaded" if self.av.dispatched else "not loaded"
        loaded = "remote" if self.remote else here
        layer, d_model = self.checkpoint.layer, self.checkpoint.d_model
        return f"<NLA {hosts.describe(self.av)!r} layer={layer} d_model={d_model} {loaded}>"

    def __copy__(self) -> NLA:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> NLA:
        return self

    def _capture(
        self,
        flat: Tensor | None,
        shape: tuple[int, ...],
        tokens: Any = None,
        positions: Any = None,
        samples: int = 1,
        sampling: Sampling | None = None,
    ) -> Capture:
        """Check the options of one ``explain()`` call and record what it took."""
        chosen = check_sampling(sampling) or self.sampling
        return Capture(
            self._queue,
            flat,
            math.prod(shape),
            count_samples(samples, chosen),
            chosen,
            tokens=self._words(provenance(tokens, shape, "tokens")),
            positions=_whole(provenance(positions, shape, "positions")),
            width=shape[-1] if shape else 1,
        )

    def _reconstruct(self) -> Reconstructor:
        if self._reconstructor is None:
            source = self._ar_source
            if source is None:
                raise CheckpointError(
                    "This NLA has no reconstructor. Give it one: NLA(av, ar='path or id')."
                )
            folder = Path(hosts.describe(source) if not isinstance(source, str | Path) else source)
            head = load_head(folder)
            tokenizer = load_tokenizer(source, self.checkpoint)
            model = load_model(source, tokenizer, None, self._load)
            self._reconstructor = Reconstructor(model, self.checkpoint, head)
        return self._reconstructor

    def _words(self, tokens: list[Any] | None) -> list[str] | None:
        if tokens is None:
            return None
        decode = self.av.tokenizer.decode
        return [token if isinstance(token, str) else decode([int(token)]) for token in tokens]


def _describe(where: str | Path, given: Checkpoint | Injection | str | Path | None) -> Checkpoint:
    if isinstance(given, Checkpoint):
        fields = {name: "the caller" for name in vars(given) if name != "source"}
        return replace(given, source={**fields, **given.source})
    if isinstance(given, Injection):
        return Checkpoint.load(where, injection=given)
    if given is None or isinstance(given, str | Path):
        return Checkpoint.load(given or where)
    raise CheckpointError(
        f"checkpoint={given!r}: expected a Checkpoint, an Injection, or the path of a sidecar."
    )


def _completed(checkpoint: Checkpoint, prompt: Prompt, tokenizer: Any) -> Checkpoint:
    """Fill in the neighbours that a sidecar left out, and say whose tokenizer is used."""
    live = {"left_id": prompt.left_id, "right_id": prompt.right_id}
    absent = {name: value for name, value in live.items() if getattr(checkpoint, name) is None}
    whose = str(getattr(tokenizer, "name_or_path", "") or "a live tokenizer")
    source = {
        **checkpoint.source,
        **dict.fromkeys(absent, "the live tokenizer"),
        "tokenizer": whose,
    }
    return replace(checkpoint, **absent, source=source)


def _whole(positions: list[Any] | None) -> list[int] | None:
    return None if positions is None else [int(position) for position in positions]


def _spec(**given: Any) -> dict[str, Any] | None:
    """The arguments an NLA can be rebuilt from elsewhere; ``None`` where one is a live model."""
    plain = (str, Path, int, float, bool, Checkpoint, Injection, Sampling, type(None))
    models = (given["av"], given["ar"])
    return given if all(isinstance(each, plain) for each in models) else None


_remote.join_requests(NLA)
