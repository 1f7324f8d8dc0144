"""`NLA`: the facade. Each method is a few lines that call the module whose idea it is.

In one glance::

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

from .checkpoint.checkpoint import Checkpoint
from .checkpoint.prompt import Prompt
from .core.baseline import Baseline
from .core.injection import Injection
from .core.sampling import Sampling
from .errors import CheckpointError, InjectionError, NLAWarning, ReconstructionError
from .evaluation import controls as _controls
from .explanation.arguments import (
    batch_rows,
    check_sampling,
    check_vectors,
    count_samples,
    flat_texts,
)
from .explanation.handle import Explanation, captured_rows, nested, provenance
from .explanation.records import Capture
from .models import hosts
from .remote import pickling as _remote

# What only some sessions use is imported where it is used: importing the package has to be quick.
if TYPE_CHECKING:
    from jaxtyping import Float
    from nnsight import TransformersModel
    from transformer_lens.model_bridge import TransformerBridge

    from .doctor.report import Diagnosis
    from .evaluation import claims as _claims
    from .evaluation import compare as _compare
    from .evaluation import score as _score
    from .evaluation import trust_labels
    from .evaluation.reconstructor import Reconstructor
    from .models import bridge
    from .models.memory import Placement
    from .reading import read as _read
    from .reading.records import Reading
    from .remote.ndif import HostStatus
    from .remote.wire import Direction
    from .verbalize.decoding import Engine


class NLA:
    """A verbalizer and a reconstructor of one target's residual stream."""

    def __init__(
        self,
        av: str | Path | TransformersModel,
        *,
        ar: str | Path | TransformersModel | None = None,
        checkpoint: Checkpoint | Injection | str | Path | None = None,
        peft: str | None = None,
        baseline: Baseline | None = None,
        remote: bool = False,
        sampling: Sampling | None = None,
        batch_size: int | Literal["auto"] = "auto",
        target: TransformersModel | None = None,
        placement: Placement = "together",
        engine: Engine = "fast",
        **load: Any,
    ) -> None:
        """Read and check sidecar, configuration and tokenizer; weights load at the first text.

        Args:
            av: The verbalizer: a Hub id, a local folder (a whole model's, or of an adapter that
                names its base), or a `TransformersModel` you already have.
            ar: The reconstructor, likewise (see `layouts` for how it may be stored); needed by
                `reconstruct`, `score`, `claims`, `direction` and the trust label.
            checkpoint: Overrides the sidecar: a `Checkpoint`, an `Injection` (how the vector is
                written, no more), or where another sidecar lies.
            peft: The verbalizer as an adapter (id or folder) on the base model `av`.
            baseline: The denominator of every FVE; the checkpoint's own unless you measured one
                (`Baseline.from_vectors`).
            remote: Run verbalizer and reconstructor on the configured NDIF host; their weights
                stay there.
            sampling: The default for every `explain`; greedy, 200 new tokens.
            batch_size: Texts per verbalizer batch; ``"auto"`` finds a size that fits into the free
                memory. A batch that does not fit after all is tried again in halves.
            target: The model that is read. Halves that are adapters run on its weights (see
                `NLA.on`), and it makes room where `placement` says so.
            placement: ``"together"``, or ``"sequential"``: target, verbalizer and reconstructor
                are in memory one at a time (see `placement` for who makes room how).
            engine: ``"fast"`` computes what a batch shares once and lets rows leave when they are
                done; ``"generate"`` is nnsight's own, the reference. An architecture that needs
                the latter takes it, and `info` says why.
            load: Goes to nnsight's `TransformersModel` as it is (``dtype=``, ``device_map=``, ...).

        Raises:
            CheckpointError: The checkpoint cannot be found, read, or served as it is.
        """
        from .models import adapter
        from .models.loading import at_depth, load_tokenizer
        from .models.memory import Places
        from .verbalize.pending import Queue
        from .verbalize.verbalizer import Verbalizer

        self.sampling = check_sampling(sampling) or Sampling()
        self.target, self.remote = target, remote
        base: Any = av
        if target is not None and peft is None and adapter.is_adapter(av):
            base, peft = target, str(av)
        folder = None if peft is not None else adapter.adapter_folder(av)
        if folder is not None:
            base, peft = adapter.base_of(folder), str(folder)
        where = peft or (av if isinstance(av, str | Path) else hosts.describe(av))
        described = at_depth(base, _describe(where, checkpoint), load)
        trust = load.get("trust_remote_code", False)
        tokenizer = load_tokenizer(folder or base, described, trust=trust)
        self.prompt = Prompt.render(described, tokenizer)
        self.checkpoint = _completed(described, self.prompt, tokenizer)
        self.av = self._load(base, tokenizer, peft, load)
        self._places = Places(placement, target)
        self._places.add_half("verbalizer", self.av, loaded_here=isinstance(av, str | Path))
        self._verbalizer = Verbalizer(
            self.av, self.checkpoint, self.prompt, remote=remote, engine=engine
        )
        self._queue = Queue(self, self._verbalizer, batch_rows(batch_size), self._places)
        self.baseline = _checked(baseline) or self.checkpoint.baseline
        self._reconstructor = None if ar is None else self._half(ar, load)
        self._reference: trust_labels.Reference | None = None
        self._other_base: weakref.WeakSet[Any] = weakref.WeakSet()
        adapter.check_used(load, self.av, self._reconstructor and self._reconstructor.ar)
        self.spec = _spec(
            av=av,
            ar=ar,
            checkpoint=checkpoint,
            peft=peft,
            baseline=baseline,
            remote=remote,
            sampling=sampling,
            batch_size=batch_size,
            target=target,
            placement=placement,
            engine=engine,
            **load,
        )
        self.uid = _remote.enter(self)

    @classmethod
    def on(
        cls,
        model: TransformersModel,
        av: str | Path | TransformersModel,
        *,
        ar: str | Path | TransformersModel | None = None,
        **options: Any,
    ) -> NLA:
        """An NLA whose halves are adapters on `model`: its weights, held once, in every role.

        `model` itself is not touched (see `sharing`), so your traces see the plain base, and a text
        may be read inside one of them. With ``remote=True`` the adapter runs on the deployment of
        `model`.

        Args:
            model: The target, an nnsight model.
            av: The verbalizer's PEFT adapter, a folder or a Hub id; or a model of its own.
            ar: The reconstructor's (as PEFT stores it with a head beside it, or ``ar_meta.json``);
                or a model of its own.
            options: As for `NLA`; what goes to nnsight is for a half that is a model of its own.

        Raises:
            CheckpointError: Neither half is an adapter, or one cannot stand on `model`.
        """
        from .models import adapter

        nla = cls(av, ar=ar, target=model, **options)
        adapter.check_shares(nla.av, nla.ar if nla.has_reconstructor else None, model)
        return nla

    @property
    def hook_name(self) -> str:
        """TransformerLens' name of the residual that is verbalized."""
        return f"blocks.{self.checkpoint.layer}.hook_out"

    @property
    def pending(self) -> tuple[Explanation, ...]:
        """The handles you can still reach that have no text yet, oldest first."""
        return tuple(self._queue.pending())

    @property
    def batch_size(self) -> int:
        """Texts per verbalizer batch; with ``"auto"``, a size is found when it is first asked for.

        It can be set, and running out of memory makes it smaller.
        """
        return self._queue.batch_size

    @batch_size.setter
    def batch_size(self, rows: int | Literal["auto"]) -> None:
        self._queue.batch_size = batch_rows(rows)

    @property
    def ar(self) -> TransformersModel:
        """The reconstructor's nnsight model."""
        return self._need_reconstructor().ar

    @property
    def has_reconstructor(self) -> bool:
        """Whether texts can be turned back into vectors."""
        return self._reconstructor is not None

    def layer(self, model: TransformersModel | TransformerBridge) -> Any:
        """The envoy of block K of `model`: ``.output`` is the residual, ``[batch, seq, d_model]``.

        Args:
            model: The target. Readable and writable inside its traces. For a TransformerLens
                `TransformerBridge`: its hook point of the same residual.

        Raises:
            InjectionError: `model` is no target known here, has another width or no block K, or is
                a bridge whose weights were folded or centred.

        Warns:
            NLAWarning: `model` goes by another name than the one the verbalizer was trained on.
        """
        from .models import bridge

        layer, d_model = self.checkpoint.layer, self.checkpoint.d_model
        host: Any = bridge if bridge.is_bridge(model) else hosts
        if host.width(model) != d_model:
            raise InjectionError(
                f"{host.describe(model)} has d_model {host.width(model)}, the verbalizer reads "
                f"{d_model}. It was trained on {self.checkpoint.base_model or 'another model'}."
            )
        envoy = host.block(model, layer)
        name, base = host.describe(model), self.checkpoint.base_model
        foreign = bool(base) and Path(base).name.lower() != Path(name).name.lower()
        if foreign and model not in self._other_base:
            self._other_base.add(model)
            warnings.warn(
                f"The verbalizer was trained on the residuals of {base}; this is {name}. Texts for "
                "another model's residuals are not to be trusted.",
                NLAWarning,
                stacklevel=2,
            )
        self._places.add_target(model)
        return envoy

    def positions(
        self, model: TransformersModel | TransformerBridge, prompts: str | Sequence[Any]
    ) -> list[hosts.Positions]:
        """The real positions of each prompt in a padded batch; see `hosts.positions`."""
        from .models import bridge

        if bridge.is_bridge(model):
            return bridge.positions(model, prompts)
        return hosts.positions(model, prompts)

    def hook(
        self, bridge: TransformerBridge, *, positions: Literal["last", "all"] = "last"
    ) -> bridge.Hook:
        """A TransformerLens hook that explains what passes, for batches and generations alike.

        ``bridge.run_with_hooks(prompts, fwd_hooks=hook.fwd_hooks)``, then ``hook.explanations``: a
        handle per forward pass and prompt.

        Args:
            bridge: The target.
            positions: Each prompt's last token (in a generation: each new one), or all of them.

        Raises:
            InjectionError: `bridge` cannot be read by this NLA; see `layer`.
        """
        from .models import bridge

        if not bridge.is_bridge(bridge):
            raise InjectionError(
                f"A hook is for a TransformerBridge, got {hosts.describe(bridge)}. In an nnsight "
                "trace: nla.explain(nla.layer(model).output[:, -1])."
            )
        self.layer(bridge)
        return bridge.Hook(self.explain, bridge, self.checkpoint.layer, positions)

    def read(
        self,
        model: TransformersModel | TransformerBridge,
        prompt: Any,
        *,
        positions: _read.Which = "all",
        generate: int | None = None,
        remote: bool = False,
        sampling: Sampling | None = None,
    ) -> Reading:
        """Every token of a text, with what the residual there is about: a table and a page.

        Where this NLA has a reconstructor, every text is scored and has its trust label.

        A run with interventions is read from an edited model: ``with model.edit() as (_, edited):
        ...``, then ``nla.read(edited, prompt)``.

        Args:
            model: The target, an nnsight model or a `TransformerBridge`.
            prompt: A string, token ids, or a list of chat messages.
            positions: Which tokens are read: ``"all"``, ``"reply"``, an index (negative ones count
                from the end), several, or a slice. The page shows the others unread.
            generate: Let the model write up to so many tokens first, greedily, and read prompt and
                reply.
            remote: Run the target on the configured NDIF host.
            sampling: How the explanations' tokens are chosen.

        Raises:
            InjectionError: The model cannot be read by this NLA, or `prompt` is not one prompt.
            NLAError: `positions` or `generate` do not fit the text.
        """
        from .reading import read as _read

        return _read.read(
            self,
            model,
            prompt,
            positions=positions,
            generate=generate,
            remote=remote,
            sampling=sampling,
        )

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

    def unload(self) -> None:
        """Drop the weights of the verbalizer and the reconstructor; handles keep what they have.

        The next text loads them again. A live model that you passed stays as it is.

        Raises:
            VerbalizationError: A trace is running on one of them.
        """
        self._queue.unload()

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
            text: A string, or nested lists of them: explanations without their tags.

        Returns:
            Float32 on the CPU, of the text's shape; the direction counts, not the length.

        Raises:
            CheckpointError: This NLA has no reconstructor.
            ReconstructionError: A text is empty, has its tags still, or is too long.
        """
        flat, shape = flat_texts(text)
        found = self._need_reconstructor().reconstruct(flat)
        return found.reshape(*shape, self.checkpoint.d_model)

    def score(
        self,
        explanation: Explanation | Any,
        vectors: Float[Tensor, "*shape d_model"] | None = None,
        *,
        baseline: Baseline | None = None,
        failures: _score.Failures = "raise",
    ) -> _score.Score:
        """How much of the vectors their explanations carry.

        Args:
            explanation: A handle (its sample 0 is scored), or text of `vectors`' shape.
            vectors: What to score against; a handle's own vectors unless given.
            baseline: The FVE's denominator; the NLA's own unless given. Without one there is no
                FVE, only cosine and MSE.
            failures: How a row without a proper explanation counts: ``"raise"``, ``"zero"`` (a
                cosine of 0), ``"skip"``, or ``"keep"`` (a reply without its tags as it is).

        Raises:
            CheckpointError: This NLA has no reconstructor.
            ReconstructionError: Vectors of another width or shape, zero or NaN, or failed rows.
        """
        from .evaluation import score as _score

        reconstruct = self._need_reconstructor().reconstruct
        texts, held, reasons = _score.pair(explanation, vectors, self.checkpoint.d_model)
        over = _checked(baseline) or self.baseline
        return _score.score(reconstruct, texts, held, reasons, baseline=over, failures=failures)

    def trust(self, explanation: Explanation) -> Any:
        """The trust label of each text (see `trust.Trust`), nested in the handle's shape.

        Measured once per row: the reconstructor reads every text, and once per NLA the verbalizer
        is asked about nothing and about random directions.

        Raises:
            CheckpointError: This NLA has no reconstructor.
        """
        self._need_reconstructor()
        return explanation.trust

    def claims(
        self,
        explanation: Explanation | Any,
        vectors: Float[Tensor, "*shape d_model"] | None = None,
        *,
        by: _claims.By = "snippet",
    ) -> Any:
        """Which parts of an explanation the vector vouches for.

        Args:
            explanation: A handle, or text of `vectors`' shape.
            vectors: What the parts are held against; a handle's own vectors unless given.
            by: What is dropped in turn: snippets (paragraphs or lines) or sentences.

        Returns:
            A `Claims` for a scalar handle, otherwise nested lists of them.

        Raises:
            CheckpointError: This NLA has no reconstructor.
            ReconstructionError: A row has no text, or unusable vectors.
        """
        from .evaluation import claims as _claims
        from .evaluation import score as _score

        half = self._need_reconstructor()
        texts, held, reasons = _score.pair(explanation, vectors, self.checkpoint.d_model)
        for row, text in enumerate(texts):
            if not (text or "").strip():
                raise ReconstructionError(f"Row {row} has no text to take apart: {reasons[row]}.")
        flat = held.reshape(-1, self.checkpoint.d_model)
        said = [str(text) for text in texts]
        found = _claims.claims(half.reconstruct, half.prior, said, flat, by)
        return nested(found, tuple(held.shape[:-1]))

    def direction(
        self,
        *,
        to: Explanation | Any,
        away_from: Explanation | Any = None,
        norm: float | None = None,
    ) -> Direction:
        """What to add to a residual so that it says `to` instead of `away_from`.

        ``nla.layer(model).output[:, -1] += nla.direction(to=edited, away_from=thought)`` works on
        any device and dtype, in any trace, local or remote; numbers scale it (``2 * direction``).

        Args:
            to: The text to go to (or nested lists of them, or a handle).
            away_from: The text, or the handle, to leave; ``None`` for the whole vector of `to`.
            norm: The L2 norm of a residual; by default that of `away_from`'s vectors where it is a
                handle, and the baseline's mean norm otherwise.

        Raises:
            CheckpointError: This NLA has no reconstructor.
            ReconstructionError: No norm is known, or there is no direction between the two.
        """
        from .evaluation import direction as _direction

        here = away_from.vectors if isinstance(away_from, Explanation) else None
        if norm is None and here is not None:
            length: Any = here.float().norm(dim=-1).cpu()
        else:
            length = norm or (self.baseline.norm if self.baseline else None)
        if length is None:
            raise ReconstructionError(
                "How long is a residual here? Pass the handle itself (away_from=thought), a "
                "length (norm=...), or a baseline with one: NLA(..., "
                "baseline=Baseline.from_vectors(vectors, name=...))."
            )
        ends = [each.text if isinstance(each, Explanation) else each for each in (to, away_from)]
        start = None if ends[1] is None else self.reconstruct(ends[1])
        return _direction.direction(self.reconstruct(ends[0]), start, length)

    def doctor(
        self,
        model: TransformersModel,
        *,
        ar: str | Path | None = None,
        texts: Sequence[str] | None = None,
        sampling: Sampling | None = None,
        remote: bool = False,
    ) -> Diagnosis:
        """Try every setting of the checkpoint against its neighbours, on a few activations.

        Args:
            model: The target.
            ar: A reconstructor to judge by, as its own sidecar describes it, where this NLA has
                none or where the two halves contradict each other.
            texts: What the target reads; a few plain English texts unless given.
            sampling: How the explanations' tokens are chosen.
            remote: Run the target on the configured NDIF host.

        Returns:
            What was tried with its figures, what loses, and the checkpoint that the evidence
            supports; see `diagnosis`.

        Raises:
            InjectionError: The target does not fit, or `texts` are none.
            CheckpointError: The checkpoint as declared cannot be run at all.
        """
        from .doctor.examine import diagnose

        return diagnose(self, model, ar=ar, texts=texts, sampling=sampling, remote=remote)

    def compare(self, before: Explanation, after: Explanation) -> _compare.Comparison:
        """What changed between two explanations: words, vectors, and the texts' meaning.

        Args:
            before: A handle.
            after: A handle of the same shape; or one of the two is scalar and stands for all.

        Returns:
            In their shape: both texts, what was `added` and `removed` (a word-level diff), the
            `cosine` between the vectors, and the `text_distance`, 1 − the cosine between the
            reconstructor's vectors of the two texts (``None`` without a reconstructor).

        Raises:
            VerbalizationError: One of them is no handle, or their shapes do not go together.
        """
        from .evaluation import compare as _compare

        reconstruct = self.reconstruct if self.has_reconstructor else None
        return _compare.compare(before, after, reconstruct)

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
            "engine": {
                "name": "fast" if self._verbalizer.why_plain is None else "generate",
                "why": self._verbalizer.why_plain,
            },
            "reconstructor": hosts.describe(self.ar) if self.has_reconstructor else None,
            "baseline": self.baseline.to_dict() if self.baseline else None,
            "source": dict(self.checkpoint.source),
        }

    def status(self) -> HostStatus:
        """What the configured NDIF host can do for this NLA right now, in `str()` and as data."""
        from .remote.ndif import status

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

    def _half(self, source: str | Path | TransformersModel, load: dict[str, Any]) -> Reconstructor:
        """The reconstructor, checked and without weights."""
        from .evaluation.reconstructor import Reconstructor
        from .models import reconstructor_files
        from .models.loading import load_tokenizer

        layout = reconstructor_files.read(source, self.checkpoint)
        adapter = None if layout.adapter is None else str(layout.adapter)
        here = isinstance(source, str | Path)
        shares = adapter is not None and self.target is not None
        tokenizer = load_tokenizer(self.target if shares else source, self.checkpoint)
        if shares:
            source = self.target
        elif here:
            source = layout.base
            config = reconstructor_files.cut_config(source, self.checkpoint.layer, load)
            # A host serves whole models; what lies above block K is not run there.
            if config is not None and not self.remote:
                load = {**load, "config": config}
        model = self._load(source, tokenizer, adapter, load, self.checkpoint.layer + 1)
        self._places.add_half("reconstructor", model, loaded_here=here)
        return Reconstructor(
            model, self.checkpoint, layout, tokenizer, remote=self.remote, places=self._places
        )

    def _load(
        self,
        source: Any,
        tokenizer: Any,
        adapter: str | None,
        load: dict[str, Any],
        blocks: int | None = None,
    ) -> TransformersModel:
        """A half without its weights: on the target's where it is an adapter on it."""
        from .models.adapter import AdapterModel
        from .models.loading import load_model

        if adapter is None or source is not self.target:
            return load_model(source, tokenizer, adapter, load)
        if self.remote:
            return load_model(hosts.describe(source), tokenizer, adapter, load)
        return AdapterModel(source, adapter, blocks=blocks)

    def _need_reconstructor(self) -> Reconstructor:
        if self._reconstructor is None:
            raise CheckpointError(
                "This NLA has no reconstructor. Give it one: NLA(av, ar='path or id')."
            )
        return self._reconstructor

    def _judge(self, capture: Capture, rows: list[int]) -> None:
        """Label rows of a capture that have none; called where a handle is displayed."""
        from .evaluation import trust_labels

        missing = [row for row in rows if row not in capture.trust]
        if missing:
            if self._reference is None:
                self._reference = trust_labels.Reference.measure(self)
            labels = trust_labels.judge(self, capture, missing, self._reference, self.baseline)
            capture.trust.update(labels)

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
    absent = {
        name: value
        for name, value in live.items()
        if getattr(checkpoint, name) is None and value is not None
    }
    whose = str(getattr(tokenizer, "name_or_path", "") or "a live tokenizer")
    source = {
        **checkpoint.source,
        **dict.fromkeys(absent, "the live tokenizer"),
        "tokenizer": whose,
    }
    return replace(checkpoint, **absent, source=source)


def _checked(baseline: object) -> Baseline | None:
    if baseline is None or isinstance(baseline, Baseline):
        return baseline
    raise ReconstructionError(
        f"baseline={baseline!r}: expected a Baseline, such as Baseline.from_vectors(vectors, "
        "name='what they are')."
    )


def _whole(positions: list[Any] | None) -> list[int] | None:
    return None if positions is None else [int(position) for position in positions]


def _spec(**given: Any) -> dict[str, Any] | None:
    """The arguments an NLA can be rebuilt from elsewhere; ``None`` where one is a live model."""
    plain = (str, Path, int, float, bool, Checkpoint, Injection, Sampling, type(None))
    models = (given["av"], given["ar"], given["target"])
    return given if all(isinstance(each, plain) for each in models) else None


_remote.join_requests(NLA)
