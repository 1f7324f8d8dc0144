"""`NLA`, the facade of the package: its methods call the modules that do the work.

Example::

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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, cast, overload

import torch
from einops import rearrange
from torch import Tensor

from . import _compat
from .checkpoint.checkpoint import Checkpoint
from .checkpoint.dates import Date
from .checkpoint.origin import Claims, Kind, Origin
from .checkpoint.prompt import Prompt
from .core.baseline import Baseline, check_baseline
from .core.injection import Injection
from .core.numeric import is_int
from .core.sampling import Sampling
from .errors import CheckpointError, InjectionError, NLAWarning
from .evaluation import controls as _controls
from .explanation.arguments import (
    batch_rows,
    check_handles,
    check_sampling,
    check_vectors,
    flat_texts,
)
from .explanation.asked import (
    Asked,
    Asker,
    AskOptions,
    check_asks,
    check_explains,
    check_question,
    check_single,
    grouped,
)
from .explanation.capturing import CaptureOptions, captured
from .explanation.handle import Explanation, check_handle
from .explanation.padding import check_padding, placed
from .explanation.records import Capture
from .models import hosts
from .models import target as targets
from .remote import pickling, wire

# Modules that only some sessions need are imported where they are used, for a quick import.
if TYPE_CHECKING:
    from jaxtyping import Float
    from nnsight.modeling.transformers import TransformersModel
    from transformer_lens.model_bridge import TransformerBridge

    from .core.nesting import Nested
    from .core.trust import Trust
    from .doctor.report import Diagnosis
    from .evaluation import claims as _claims
    from .evaluation import compare as _compare
    from .evaluation import score as _score
    from .evaluation.labels import Labels
    from .evaluation.length import OverLength
    from .evaluation.reconstructor import Reconstructor
    from .evaluation.trust_labels import TrustLabeller
    from .explanation.ends import Ends
    from .explanation.padding import At
    from .explanation.protocols import Target
    from .models.bridge import Hook
    from .models.memory import Placement
    from .reading import read as _read
    from .reading.records import Reading
    from .remote.ndif import HostStatus
    from .verbalize.decoding import Engine
    from .verbalize.engine import EngineName
    from .verbalize.streaming import OnText


class NLA:
    """A verbalizer, and optionally a reconstructor, for one layer of a target model."""

    def __init__(
        self,
        av: str | Path | TransformersModel | Sequence[str | Path] | None = None,
        *,
        ar: str | Path | TransformersModel | None = None,
        checkpoint: Checkpoint | Injection | str | Path | None = None,
        peft: str | Path | Sequence[str | Path] | None = None,
        baseline: Baseline | None = None,
        remote: bool = False,
        sampling: Sampling | None = None,
        batch_size: int | Literal["auto"] = "auto",
        target: TransformersModel | None = None,
        placement: Placement = "together",
        engine: EngineName = "fast",
        vllm: Mapping[str, Any] | None = None,
        url: str | None = None,
        date: Date | None = None,
        layer: int | None = None,
        av_options: Mapping[str, Any] | None = None,
        ar_options: Mapping[str, Any] | None = None,
        **load: Any,
    ) -> None:
        """Check sidecar, configuration and tokenizer; weights load when a text is first generated.

        Args:
            av: The verbalizer: a Hub id, a local folder (of a full model, or of an adapter that
                names its base), or a `TransformersModel`; or a list of adapters that were trained
                one on top of the other, in that order (see `models.stacked`). With `url`, the
                server's own unless given.
            ar: The reconstructor, in the same forms (see `models.reconstructor_files` for its file
                layouts); `reconstruct`, `score`, `claims`, `direction` and trust labels need it.
            checkpoint: Overrides the sidecar: a `Checkpoint`, an `Injection` (to change only how
                the vector is injected), or the path of another sidecar.
            peft: The verbalizer as an adapter (id or folder), or a list of them, on the base model
                `av`.
            baseline: The denominator of every FVE; by default the checkpoint's own.
            remote: Run verbalizer and reconstructor on the configured NDIF host.
            sampling: The default for every `explain`; unless given, greedy with 200 new tokens.
            batch_size: Texts per verbalizer batch; ``"auto"`` finds a size that fits into memory. A
                batch that runs out of memory is split and tried again.
            target: The target model. A verbalizer or reconstructor that is an adapter shares its
                weights (see `NLA.on`), and `placement` includes it.
            placement: ``"together"``, or ``"sequential"`` to keep only one of target, verbalizer
                and reconstructor in memory at a time (see `models.memory`).
            engine: ``"fast"`` computes the shared prompt once per batch and drops finished rows;
                ``"generate"`` is nnsight's own generation, the reference. Architectures that
                ``"fast"`` does not support use ``"generate"``; `info` then says why. ``"vllm"`` is
                vLLM, for many vectors or many users on GPUs; see `verbalize.vllm`.
            vllm: Keyword arguments of vLLM's ``LLM``, as they are.
            url: The address of a server that ``nnsight-nla serve`` started, for
                ``engine="vllm"``: texts are generated there.
            date: The date to print, such as ``"2026-11-26"``, if the chat template prints one; by
                default the checkpoint's own, otherwise today.
            layer: The block to read, for a verbalizer that was trained on several; by default the
                checkpoint's `layer`. See `at_layer`.
            av_options: Options for the verbalizer only, in addition to `load`.
            ar_options: Options for the reconstructor only, in addition to `load`; for example, with
                a live verbalizer, ``NLA(av, ar=path, ar_options={"dtype": "bfloat16"})``.
            load: Passed to nnsight's `TransformersModel` for both (``dtype=``, ``device_map=``,
                ...).

        Raises:
            CheckpointError: The checkpoint cannot be found or read, or does not fit the model.

        Warns:
            NLAWarning: The chat template prints today's date, so texts may differ tomorrow; or
                attention leaves out the soft cap of the configuration.
        """
        given = {**locals(), **load}
        from .evaluation.reconstructor import Reconstructor
        from .models.adapter import check_used
        from .models.memory import Memory
        from .models.open import OpenOptions, open_reconstructor, open_verbalizer, prompt_of
        from .models.stacked import one_adapter
        from .verbalize.engine import EngineOptions, engine_maker, served_source

        av = given["av"] = one_adapter(av)
        adapter = one_adapter(peft)
        adapter = given["peft"] = None if adapter is None else str(adapter)
        self.sampling = check_sampling(sampling) or Sampling()
        self.target, self.remote = target, remote
        self._memory = Memory(placement, target)
        where = OpenOptions(target, remote, self._memory, load)
        av_options, ar_options = dict(av_options or {}), dict(ar_options or {})
        live = av is not None and not isinstance(av, str | Path)
        chosen = EngineOptions({**load, **av_options}, vllm, url, live, remote)
        self._maker, self.url = engine_maker(engine, chosen), url
        av = served_source(url) if av is None else av
        opened = open_verbalizer(
            av, where.with_load(av_options), checkpoint=checkpoint, peft=adapter, date=date
        )
        self.runtime, self._template = opened.runtime, opened.template
        self._own_baseline = check_baseline(baseline) or opened.checkpoint.baseline
        self._own_ar: Reconstructor | None = None
        if ar is not None:
            found = open_reconstructor(ar, where.with_load(ar_options), opened.checkpoint)
            self._own_ar = Reconstructor(found, opened.checkpoint)
        self._by_layer: dict[int, NLA] = {}
        self.question: AskOptions | None = None
        decoding = "generate" if engine == "generate" else "fast"
        described, prompt = opened.checkpoint, opened.prompt
        if layer is not None:
            described, prompt = prompt_of(self._template.at_layer(layer), self.av)
        self._set_prompt(described, prompt, decoding, batch_rows(batch_size))
        self._other_base: weakref.WeakSet[Any] = weakref.WeakSet()
        opened_ar = None if self._own_ar is None else self._own_ar.ar
        check_used(load, self.av, opened_ar)
        check_used(av_options, self.av)
        check_used(ar_options, opened_ar)
        self.spec = pickling.rebuildable({**given, "date": self.prompt.date})
        self.uid = pickling.enter(self)

    def _set_prompt(
        self, checkpoint: Checkpoint, prompt: Prompt, decoding: Engine, rows: int | None
    ) -> None:
        """Set the prompt, and everything that depends on it."""
        from .evaluation.answer_controls import AnswerLabeller
        from .evaluation.trust_labels import TrustLabeller
        from .verbalize.pending import Queue
        from .verbalize.verbalizer import Verbalizer

        self.checkpoint, self.prompt = checkpoint, prompt
        self._by_layer[checkpoint.layer] = self
        # A reconstructor reconstructs the residuals of one block, which its baseline is of.
        own = checkpoint.layer == self._template.layer
        self._reconstructor = self._own_ar if own else None
        self.baseline = self._own_baseline if own else None
        self._verbalizer = Verbalizer(self.runtime, checkpoint, prompt, engine=decoding)
        self._engine = self._maker(self._verbalizer)
        longest = self.sampling.max_new_tokens
        self.queue = Queue(self, self._verbalizer, self._engine, rows, longest)
        self.labeller: TrustLabeller | AnswerLabeller | None = None
        self._asker = Asker(
            checkpoint, self.av.tokenizer, self._verbalizer.context, self.runtime.name
        )
        if checkpoint.slots > 1:  # A reconstructor gives one vector for a text.
            self._reconstructor = None
        if checkpoint.asks:
            self.labeller = AnswerLabeller(self.queue)
        elif self._reconstructor is not None:
            self.labeller = TrustLabeller(
                self._reconstructor, self.queue, self.sampling, self.baseline, self._verbalizer
            )

    @classmethod
    def on(
        cls,
        model: TransformersModel,
        av: str | Path | TransformersModel | Sequence[str | Path],
        *,
        ar: str | Path | TransformersModel | None = None,
        **options: Any,
    ) -> NLA:
        """Return an NLA whose adapters share the weights of `model`.

        `model` itself is not changed (see `models.adapter`): your traces see the unmodified model,
        and a text may be read inside one of them. With ``remote=True`` the adapter runs on the
        deployment of `model`.

        Args:
            model: The target, an nnsight model.
            av: The verbalizer's PEFT adapter, a folder or a Hub id, or a list of them; or a
                separate model.
            ar: The reconstructor's adapter (as PEFT stores it with a head, or ``ar_meta.json``); or
                a separate model.
            options: As for `NLA`; options for nnsight apply to separate models only.

        Raises:
            CheckpointError: Neither `av` nor `ar` is an adapter, or one does not fit `model`.
        """
        from .models.adapter import check_shares

        nla = cls(av, ar=ar, target=model, **options)
        check_shares(nla.av, nla.ar if nla.has_reconstructor else None, model)
        return nla

    def on_date(self, date: Date) -> Self:
        """Return this NLA with another date in its prompt; both share models and weights.

        Args:
            date: A date such as ``"2026-11-26"``. It has no effect if the chat template does not
                print a date.

        Raises:
            CheckpointError: It is not a date.
        """
        other = self._copied()
        other._template, other._by_layer = self._template.on_date(date), {}
        other._read_layer(self.checkpoint.layer)
        return other._entered(date=other.prompt.date)

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks whose residuals the verbalizer was trained on."""
        return self._template.layers or (self._template.layer,)

    def at_layer(self, layer: int) -> NLA:
        """Return this NLA for the residuals of another block; both share models and weights.

        The slots ``{layer}`` and ``{depth_pct}`` of the template are filled in for this block. A
        reconstructor belongs to one block: at the others, there are no scores and no trust labels.

        Args:
            layer: One of `layers`.

        Raises:
            CheckpointError: The verbalizer was not trained on this block.
        """
        if is_int(layer) and layer in self._by_layer:
            return self._by_layer[layer]
        other = self._copied()
        other._read_layer(layer)
        return other._entered(layer=layer)

    def _copied(self) -> Self:
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    def _read_layer(self, layer: int) -> None:
        """Set the prompt for another block, and everything that depends on it."""
        from .models.open import prompt_of

        engine, rows = self._verbalizer.engine, self.queue.known_batch_size
        checkpoint, prompt = prompt_of(self._template.at_layer(layer), self.av)
        self._set_prompt(checkpoint, prompt, engine, rows)

    def _entered(self, **spec: Any) -> Self:
        """Register a copy with the arguments in which it differs."""
        self.spec = None if self.spec is None else {**self.spec, **spec}
        self.uid = pickling.enter(self)
        return self

    def _for_layer(self, layer: int | None, claims: Claims) -> NLA:
        """Return the NLA for a block; this one if the caller insists on a block not trained on."""
        if layer is None:
            return self
        if claims == "ignore" and is_int(layer, 0) and layer not in self.layers:
            return self
        try:
            return self.at_layer(layer)
        except CheckpointError as error:
            if not is_int(layer, 0):
                raise
            raise CheckpointError(
                f"{error} To explain its residuals all the same, pass claims='ignore'."
            ) from error

    @property
    def av(self) -> TransformersModel:
        """The verbalizer's nnsight model."""
        return self.runtime.model

    @property
    def hook_name(self) -> str:
        """The name of the verbalized residual in TransformerLens."""
        return f"blocks.{self.checkpoint.layer}.hook_out"

    @property
    def pending(self) -> tuple[Explanation, ...]:
        """All handles that do not have a text yet, oldest first, layer by layer."""
        return tuple(each for nla in self._by_layer.values() for each in nla.queue.pending())

    @property
    def batch_size(self) -> int:
        """Texts per verbalizer batch. You can set it; it shrinks when memory runs out."""
        return self.queue.batch_size

    @batch_size.setter
    def batch_size(self, rows: int | Literal["auto"]) -> None:
        for nla in self._by_layer.values():
            nla.queue.batch_size = batch_rows(rows)

    @property
    def concurrent(self) -> bool:
        """Whether several threads may verbalize at the same time, as on vLLM."""
        return self._engine.concurrent

    @property
    def ar(self) -> TransformersModel:
        """The reconstructor's nnsight model."""
        return self._need_reconstructor().ar

    @property
    def has_reconstructor(self) -> bool:
        """Whether texts can be turned back into vectors."""
        return self._reconstructor is not None

    def layer(self, model: Target, layer: int | None = None, *, claims: Claims = "check") -> Any:
        """Return the envoy of block K of `model`; its ``.output`` is the residual.

        Args:
            model: The target. Inside its traces you can read and write ``.output``,
                ``[batch, seq, d_model]``. For a TransformerLens `TransformerBridge`, the hook point
                of the same residual is returned.
            layer: Another block than K, of those that the verbalizer was trained on (`layers`).
            claims: ``"ignore"`` returns any block.

        Raises:
            InjectionError: `model` is not a supported target, has a different width or no block K,
                or is a bridge whose weights were folded or centred.
            CheckpointError: The verbalizer was not trained on `layer`.

        Warns:
            NLAWarning: The name of `model` differs from that of the verbalizer's target; or the
                running trace has prompts padded on the left, and `model` does not mask padding; or
                its attention leaves out the soft cap of its configuration.
        """
        self._for_layer(layer, claims)
        envoy = targets.residual(model, self.checkpoint, layer)
        targets.check_padding(model)
        if targets.is_foreign(model, self.checkpoint) and model not in self._other_base:
            self._other_base.add(model)
            warnings.warn(
                f"The verbalizer was trained on the residuals of {self.checkpoint.base_model}; "
                f"this is {targets.describe(model)}. Do not trust explanations of another model's "
                "residuals.",
                NLAWarning,
                stacklevel=2,
            )
        self._memory.add_target(model)
        return envoy

    def positions(
        self,
        model: Target,
        prompts: str | Sequence[Any],
        *,
        padding_side: hosts.Side | None = None,
        prepend_bos: bool | None = None,
    ) -> list[hosts.Positions]:
        """Return the real positions of each prompt in a padded batch, and its tokens.

        Args:
            model: The target, an nnsight model or a `TransformerBridge`.
            prompts: A prompt or a list of them: strings, lists of token ids, lists of messages.
            padding_side: The side that the batch is padded on, if the call overrides the tokenizer.
            prepend_bos: For a `TransformerBridge`, as in the call; by default the bridge's default.

        Raises:
            InjectionError: One of them is not a prompt, or an option does not fit.
        """
        return targets.positions(model, prompts, padding_side=padding_side, prepend_bos=prepend_bos)

    def hook(
        self,
        bridge: TransformerBridge,
        *,
        positions: Literal["last", "all"] = "last",
        at: At | None = None,
    ) -> Hook:
        """Return a TransformerLens hook that explains residuals, in batches and in generations.

        ``bridge.run_with_hooks(prompts, fwd_hooks=hook.fwd_hooks)`` fills ``hook.explanations``: a
        handle per forward pass and prompt.

        Args:
            bridge: The target.
            positions: ``"last"`` for each prompt's last token (in a generation, each new one), or
                ``"all"``.
            at: ``nla.positions(bridge, prompts)``; needed only if you call the bridge with token
                ids, and the pad token also occurs in a text.

        Raises:
            InjectionError: `bridge` cannot be read by this NLA; see `layer`.
        """
        from .models.bridge import Hook, check_bridge

        check_single(self.checkpoint, "hook")
        check_bridge(bridge)
        self.layer(bridge)
        return Hook(self.explain, bridge, self.checkpoint.layer, positions, at)

    @overload
    def read(
        self, model: Target, prompt: _read.Prompt, **options: Unpack[_read.ReadOptions]
    ) -> Reading: ...
    @overload
    def read(
        self, model: Target, prompt: _read.Prompts, **options: Unpack[_read.ReadOptions]
    ) -> list[Reading]: ...
    def read(
        self,
        model: Target,
        prompt: _read.Prompt | _read.Prompts,
        *,
        positions: _read.Which = "all",
        generate: int | None = None,
        layer: int | None = None,
        claims: Claims = "check",
        remote: bool = False,
        sampling: Sampling | None = None,
        upto: Literal["line"] | int | None = None,
        question: str | None = None,
        choices: Sequence[str] | None = None,
    ) -> Reading | list[Reading]:
        """Explain the residual at every token of a text, or of several, as tables or HTML pages.

        If this NLA has a reconstructor, every explanation has a score and a trust label. To read a
        run with interventions, pass an edited model: ``with model.edit() as (_, edited): ...``,
        then ``nla.read(edited, prompt)``.

        Args:
            model: The target, an nnsight model or a `TransformerBridge`.
            prompt: A string, token ids, or a list of chat messages; or a list of such prompts,
                whose explanations are generated together. Every option applies to each of them.
            positions: Which tokens are read: ``"all"``, ``"reply"``, an index (negative ones count
                from the end), several, or a slice. The page shows the others without explanations.
            generate: Let the model first generate up to this many tokens, greedily, then read the
                prompt and the reply.
            layer: Read the output of this block instead of block K.
            claims: ``"ignore"`` allows a block that the verbalizer was not trained on; the warnings
                and the trust labels then say so.
            remote: Run the target on the configured NDIF host.
            sampling: How the explanations' tokens are chosen.
            upto: End each explanation after its first line (``"line"``), or after this number of
                tokens: short for ``sampling=Sampling(upto=...)``.
            question: For an oracle: the question about each token's residual.
            choices: For an oracle: the answers to choose from; see `ask`.

        Returns:
            A reading; for a list of prompts, a list with one for each, the same as alone.

        Raises:
            InjectionError: This NLA cannot read the model, or `prompt` is not a prompt or a list of
                prompts. For one of several, the message begins with its number.
            NLAError: `positions` or `generate` do not fit the text, or the verbalizer was not
                trained on `layer`.
        """
        from .reading import read as _read

        check_question(question, choices)
        if upto is not None:
            sampling = replace(check_sampling(sampling) or self.sampling, upto=upto)
        return _read.read(
            self if question is None else self.asking(question, choices=choices),
            model,
            prompt,
            positions=positions,
            generate=generate,
            layer=layer,
            claims=claims,
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
        origin: Origin | None = None,
        claims: Claims = "check",
        layer: int | None = None,
        kind: Kind | None = None,
        at: At | None = None,
    ) -> Explanation:
        """Capture vectors, and return a handle on their explanations.

        The texts are generated when one is first read. This works in any trace, invoke,
        ``tracer.iter`` step or session, and outside of them; the handle does not need ``.save()``.
        Only type, dtype and width are checked here: a row that is zero, NaN or infinite is found
        later and recorded in ``.errors``.

        Args:
            vectors: Raw residuals at the output of block K; copied here, so that later edits in the
                same trace do not change the handle. For a verbalizer with a marker for each of
                several vectors (``checkpoint.vectors``), ``[*shape, vectors, d_model]``.
            tokens: The token each vector was read at (strings or ids), of shape ``*shape``.
            positions: The position of each vector, of shape ``*shape``; with `tokens`, the warnings
                also cover positions, norms and quotes.
            samples: Texts per vector; more than 1 needs a temperature above 0.
            sampling: How tokens are chosen, for this call.
            origin: What the vectors are, if they are not raw residuals of layer K:
                ``Origin(model=, layer=, norm=, kind=)``. It is compared with the checkpoint, and
                stored in the handle.
            claims: ``"ignore"`` explains vectors of a different origin anyway; `warnings` then say
                so.
            layer: The block that they were read at, of those that the verbalizer was trained on
                (`layers`); by default K. The prompt says which.
            kind: What they are: ``"residual"``, ``"difference"`` (of two residuals) or
                ``"direction"`` (a row of a sparse autoencoder's decoder or of a weight matrix, a
                steering vector). Verbalizers are trained on residuals; of anything else, warnings,
                receipt and every view say so, and the trust label is ``none``.
            at: What ``nla.positions(model, prompts)`` returns, for vectors ``[prompts, seq,
                d_model]``: only the real tokens are explained, and `tokens` and `positions` are
                filled in.

        Returns:
            A handle of shape ``vectors.shape[:-1]``; with `at`, a ragged one, with the tokens of
            each prompt.

        Raises:
            InjectionError: `vectors` is not a floating-point tensor, has a different width or
                origin than the verbalizer's training vectors, or does not fit `at`.
            CheckpointError: The verbalizer was not trained on `layer`, or there is no such `kind`.
            VerbalizationError: `samples`, `tokens` or `positions` do not fit.

        Warns:
            NLAWarning: Vectors were read at padding, in a trace.
        """
        check_vectors(vectors, self.checkpoint.d_model)
        if self.question is None:
            check_explains(self.checkpoint, self.name)
        if kind is not None:
            origin = Origin(kind=kind).joined(*([] if origin is None else [origin]))
        options: CaptureOptions = {
            "tokens": tokens,
            "positions": positions,
            "samples": samples,
            "sampling": sampling,
            "origin": origin,
            "claims": claims,
            "layer": layer,
            "kind": "direction" if isinstance(vectors, wire.Direction) else None,
        }
        if self.checkpoint.slots > 1:
            flat, slots, shape = self._for_each_marker(vectors, at)
            return Explanation.of(self.capture(flat, shape, slots=slots, **options), shape)
        fake = _compat.is_fake(vectors)
        if at is not None:
            found = placed(vectors, at, tokens, positions)
            vectors, options["lengths"] = found.vectors, found.lengths
            options["tokens"], options["positions"] = found.tokens, found.positions
        elif not fake:
            options["padding"] = check_padding(vectors)
        shape = tuple(vectors.shape[:-1])
        flat = None if fake else rearrange(vectors.detach(), "... d -> (...) d").clone()
        if self.question is None:
            return Explanation.of(self.capture(flat, shape, **options), shape)
        flat = None if flat is None else flat[:, None]
        slots = (1,) * math.prod(shape)
        capture = self.capture(flat, shape, question=self.question, slots=slots, **options)
        return Explanation.of(capture, shape)

    def _for_each_marker(
        self, vectors: Tensor, at: At | None
    ) -> tuple[Tensor | None, tuple[int, ...], tuple[int, ...]]:
        """Group the vectors of each explanation, one for each marker; see `grouped`."""
        count = self.checkpoint.slots
        if at is not None or vectors.ndim < 2 or vectors.shape[-2] != count:
            got = f"{list(vectors.shape)}{'' if at is None else ' with at='}"
            raise InjectionError(
                f"This verbalizer reads {count} vectors, one at each marker: expected "
                f"[..., {count}, {self.checkpoint.d_model}], got {got}. Write "
                "nla.explain(torch.stack([a, b], dim=-2))."
            )
        return grouped(vectors, self.checkpoint.d_model)

    def ask(
        self,
        vectors: Float[Tensor, "*shape slots d_model"] | Sequence[Float[Tensor, "slots d_model"]],
        questions: Nested[str] | Sequence[str],
        *,
        choices: Sequence[str] | None = None,
        layer: int | None = None,
        tokens: Any = None,
        positions: Any = None,
        samples: int = 1,
        sampling: Sampling | None = None,
        origin: Origin | None = None,
        claims: Claims = "check",
    ) -> Explanation:
        """Ask an activation oracle about vectors, and return a handle on its answers.

        As with `explain`, the answers are generated when one is first read, in any trace or
        outside of one. ``handle.trust`` says what the oracle answers without the vectors.

        Args:
            vectors: Raw residuals, one for each slot of the prompt: ``[*shape, slots, d_model]``,
                such as ``residual[0, -3:]``; or a list of tensors with different numbers of slots.
                ``[d_model]`` is one slot.
            questions: One question, or one for each, in `shape`.
            choices: Answers to choose from, such as ``["Yes", "No"]``. Nothing is generated: the
                handle's `probabilities` are those of an answer that begins with each choice, all
                its tokens included, normalised; its text is the likeliest.
            layer: The block that the vectors are the output of, which many oracles are told; by
                default ``checkpoint.layer``. See ``nla.layer(model)``.
            tokens: The token of each row's last vector, of shape `shape`.
            positions: Its position.
            samples: Answers per row; more than 1 needs a temperature above 0.
            sampling: How tokens are chosen, for this call.
            origin: What the vectors are; see `explain`.
            claims: ``"ignore"`` asks about vectors of a different origin anyway.

        Returns:
            A handle of shape `shape`.

        Raises:
            CheckpointError: This NLA explains vectors and cannot be asked, or the oracle was not
                trained on `layer`.
            InjectionError: `vectors` are not floating-point tensors of the right width.
            VerbalizationError: A question is empty or does not fit in the context, or one of
                `choices` is the beginning of another.
        """
        check_asks(self.checkpoint, self.name)
        flat, slots, shape = grouped(vectors, self.checkpoint.d_model)
        question: AskOptions = {"questions": questions, "choices": choices}
        kind = "direction" if isinstance(vectors, wire.Direction) else None
        capture = self.capture(
            flat, shape, tokens=tokens, positions=positions, samples=samples, sampling=sampling,
            origin=origin, claims=claims, layer=layer, kind=kind, question=question, slots=slots,
        )  # fmt: skip
        return Explanation.of(capture, shape)

    def asking(
        self,
        question: str,
        *,
        choices: Sequence[str] | None = None,
        layer: int | None = None,
    ) -> Self:
        """Return this oracle with a question, for everything that explains: `read`, experiments.

        Its ``explain(vectors)`` is ``ask(vectors[..., None, :], question)``; both share models and
        weights.

        Args:
            question: The question about each vector.
            choices: As for `ask`.
            layer: As for `ask`.

        Raises:
            CheckpointError: This NLA explains vectors and cannot be asked, or the oracle was not
                trained on `layer`.
            VerbalizationError: Question or choices do not fit.
        """
        options: AskOptions = {"questions": question, "choices": choices}
        read = cast("Self", self._for_layer(layer, "check"))
        asked = read._asked(options, (1,), (), None)
        other = read._copied()
        other.question, other.spec, other.prompt = options, None, asked.prompts[0]
        other._by_layer = {other.checkpoint.layer: other}
        return other._entered()

    def explain_difference(
        self,
        a: Float[Tensor, "*shape d_model"],
        b: Float[Tensor, "*shape d_model"],
        *,
        samples: int = 1,
        sampling: Sampling | None = None,
        layer: int | None = None,
    ) -> Ends:
        """Explain the difference of two residuals by both ends and by both signs.

        The two ends are residuals, as the verbalizer was trained on; the difference and its
        negative are not, and their handles say so. It works in any trace that `explain` works in,
        except on a remote host: there, save the residuals and call it after the block.

        Args:
            a: One residual, or a batch of them.
            b: The other one, of the same shape.
            samples: Texts per vector.
            sampling: How tokens are chosen.
            layer: The block that they were read at, as for `explain`.

        Raises:
            InjectionError: They are not tensors of one shape, or do not fit the verbalizer.
        """
        from .explanation.ends import explain_ends

        options = {"samples": samples, "sampling": sampling, "layer": layer}
        return explain_ends(self, a, b, **options)

    def label(
        self,
        directions: Float[Tensor, "rows d_model"],
        *,
        names: Sequence[object] | None = None,
        kind: Kind = "direction",
        sampling: Sampling | None = None,
    ) -> Labels:
        """Label the rows of a matrix of directions, best first.

        The order is by how far each text's reconstruction beats its controls (`Trust.margin`): the
        other rows, no vector, and random directions.

        Args:
            directions: A direction in each row.
            names: The name of each row; by default its number.
            kind: What the rows are, as for `explain`.
            sampling: How tokens are chosen.

        Returns:
            A table with a row per direction; a row without a text is at the end, with its error.

        Raises:
            CheckpointError: This NLA has no reconstructor, so there is nothing to sort by.
            InjectionError: It is not a matrix of that width, or `names` does not fit.
        """
        from .evaluation.labels import label_directions

        self._need_reconstructor()
        return label_directions(self, directions, names, kind=kind, sampling=sampling)

    def explain_nothing(self) -> Explanation:
        """Return the null control: the verbalizer's text with nothing injected at the marker."""
        blank = torch.zeros(1, self.checkpoint.d_model, dtype=torch.float32, device="cpu")
        if self.question is None:
            check_explains(self.checkpoint, self.name)
        asked = None if self.question is None else self._asked(self.question, (1,), (), None)
        several = self.checkpoint.slots
        if several > 1:
            asked = Asked((), (self.prompt,), (several,), self.checkpoint.layer)
        blank = blank if asked is None else blank[None].expand(-1, several, -1)
        capture = Capture(
            self.queue, blank, 1, 1, self.sampling, null=True, labeller=self.labeller, asked=asked
        )
        return Explanation.of(capture, ())

    def resolve(
        self,
        handles: Explanation | Iterable[Explanation] | None = None,
        *,
        on_text: OnText | None = None,
    ) -> None:
        """Verbalize all pending handles, or only these.

        Args:
            handles: The handles.
            on_text: Called with a `TextSoFar` after each decoding step, once for each text that is
                not finished, and with each finished text. Where it returns ``"stop"``, that text is
                not generated further, and its row stays pending; see `verbalize.streaming`.

        Raises:
            VerbalizationError: Generation failed (rows without a text stay pending), or one of
                `handles` is not a handle.
        """
        if handles is None:
            for nla in list(self._by_layer.values()):
                nla.queue.resolve_only(nla.queue.pending(), on_text=on_text)
            return
        given = check_handles(handles)
        queues = [nla.queue for nla in self._by_layer.values() if nla is not self]
        for queue in queues:
            queue.resolve_only(
                [each for each in given if each.capture.queue is queue], on_text=on_text
            )
        self.queue.resolve_only(
            [each for each in given if each.capture.queue not in queues], on_text=on_text
        )

    def unload(self) -> None:
        """Drop the weights of the verbalizer and the reconstructor; handles keep their texts.

        They are loaded again when needed. A live model that you passed is not touched.

        Raises:
            VerbalizationError: A trace is running on one of them.
        """
        with self.runtime.lock.held(), (self._own_ar or self).runtime.lock.held():
            self._memory.unload()
            self._engine.unload()

    def controls(
        self, n: int, *, like: Explanation | Tensor | None = None, seed: int = 0
    ) -> _controls.Controls:
        """Explain controls that do not depend on your vectors: null, random and shuffled.

        Args:
            n: The number of rows per control.
            like: The vectors (or their explanation) to shuffle and to take the norms from.
            seed: The seed of the random directions and of the order.
        """
        self._check_origin(like, "its vectors: like=handle.vectors")
        check_single(self.checkpoint, "controls")
        return _controls.controls(self, n, self.checkpoint.d_model, like, seed)

    def reconstruct(self, text: Any) -> Float[Tensor, "*shape d_model"]:
        """Turn texts back into vectors with the reconstructor.

        Args:
            text: A string, or nested lists of strings: explanations without tags.

        Returns:
            Float32 on the CPU, of the text's shape; only the direction is meaningful.

        Raises:
            CheckpointError: This NLA has no reconstructor.
            ReconstructionError: A text is empty, still has its tags, or is too long.
        """
        flat, shape = flat_texts(text)
        found = self._need_reconstructor().reconstruct(flat)
        return found.reshape(*shape, self.checkpoint.d_model)

    @overload
    def score(
        self,
        explanation: Explanation | Any,
        vectors: Float[Tensor, "*shape d_model"] | None = ...,
        *,
        baseline: Baseline | None = ...,
        failures: _score.Failures = ...,
        upto: Literal["line", "whole"] | int | None = ...,
    ) -> _score.Score: ...

    @overload
    def score(
        self,
        explanation: Explanation | Any,
        vectors: Float[Tensor, "*shape d_model"] | None = ...,
        *,
        baseline: Baseline | None = ...,
        failures: _score.Failures = ...,
        upto: list[Any] | tuple[Any, ...],
    ) -> OverLength: ...

    def score(
        self,
        explanation: Explanation | Any,
        vectors: Float[Tensor, "*shape d_model"] | None = None,
        *,
        baseline: Baseline | None = None,
        failures: _score.Failures = "raise",
        upto: Literal["line", "whole"] | int | list[Any] | tuple[Any, ...] | None = None,
    ) -> _score.Score | OverLength:
        """Measure how well vectors can be reconstructed from their explanations.

        Args:
            explanation: A handle (its sample 0 is scored), or texts in the shape of `vectors`.
            vectors: The vectors to compare with; by default the handle's own.
            baseline: The denominator of the FVE; by default the NLA's own. Without one, there is
                no FVE, only cosine and MSE.
            failures: How a row without a well-formed explanation counts: ``"raise"``, ``"zero"`` (a
                cosine of 0), ``"skip"``, or ``"keep"`` (score a reply without its tags as it is).
            upto: Score only the first line (``"line"``), or this number of the verbalizer's tokens;
                a reply then needs no tags. Several lengths, such as ``["line", 8, 16, "whole"]``,
                give the curve: an `OverLength` with the mean score of each. For truth over length,
                see `evaluation.over_length`; to generate no more than that, pass
                ``Sampling(upto=...)`` to `explain`, or ``upto=`` to `read`.

        Raises:
            CheckpointError: This NLA has no reconstructor.
            ReconstructionError: A vector has another shape, is zero or NaN, or a row failed.
        """
        from .evaluation import length as _length
        from .evaluation import score as _score

        reconstruct = self._need_reconstructor().reconstruct
        if vectors is None:
            self._check_origin(explanation, "both: score(handle.text, handle.vectors)")
        over = check_baseline(baseline) or self.baseline
        if isinstance(upto, list | tuple):
            return _length.curve(
                self, explanation, vectors, upto=upto, baseline=over, failures=failures
            )
        texts, held, reasons = _score.pair(explanation, vectors, self.checkpoint.d_model)
        if upto is not None:
            texts, reasons = _length.shortened(self.av.tokenizer, texts, reasons, upto)
        return _score.score(reconstruct, texts, held, reasons, baseline=over, failures=failures)

    def trust(self, explanation: Explanation) -> Nested[Trust]:
        """Return the trust label of each text (see `Trust`), nested in the handle's shape.

        The handles of this NLA are measured once. A handle of another NLA is measured at every
        call, with the reconstructor and the controls of this NLA.

        Raises:
            CheckpointError: This NLA has no reconstructor.
            VerbalizationError: It is not a handle, or generating the texts failed.
        """
        self._need_reconstructor()
        check_handle(explanation, "trust()")
        self._check_origin(explanation, "its vectors: trust(nla.explain(handle.vectors))")
        if explanation.capture.labeller is self.labeller:
            return cast("Nested[Trust]", explanation.trust)
        explanation.extracted()  # Generates what is pending.
        labels = cast("TrustLabeller", self.labeller).measure(explanation.capture, explanation.rows)
        return explanation.shaped([labels[row] for row in explanation.rows])

    def claims(
        self,
        explanation: Explanation | Any,
        vectors: Float[Tensor, "*shape d_model"] | None = None,
        *,
        by: _claims.By = "snippet",
    ) -> Nested[_claims.Claims]:
        """Measure which parts of an explanation the vector supports.

        Args:
            explanation: A handle, or texts in the shape of `vectors`.
            vectors: The vectors to compare with; by default the handle's own.
            by: The parts to leave out one at a time: snippets (paragraphs or lines) or sentences.

        Returns:
            A `Claims` for a scalar handle, otherwise nested lists of them.

        Raises:
            CheckpointError: This NLA has no reconstructor.
            ReconstructionError: A row has no text, or an unusable vector.
        """
        from .evaluation import claims as _claims

        if vectors is None:
            self._check_origin(explanation, "both: claims(handle.text, handle.vectors)")
        return _claims.claims_of(self._need_reconstructor(), explanation, vectors, by)

    def direction(
        self,
        *,
        to: Explanation | Any,
        away_from: Explanation | Any = None,
        norm: float | None = None,
    ) -> wire.Direction:
        """Return the vector to add to a residual so that it is explained as `to`.

        ``nla.layer(model).output[:, -1] += nla.direction(to=edited, away_from=thought)`` works on
        any device and dtype, in any trace, local or remote; numbers scale it (``2 * direction``).

        Args:
            to: The text to move to (or nested lists of texts, or a handle).
            away_from: The text, or the handle, to move away from; ``None`` for a step to `to` only.
            norm: The L2 norm of a residual; by default the norm of the vectors of `away_from` if it
                is a handle, otherwise the baseline's mean norm.

        Raises:
            CheckpointError: This NLA has no reconstructor.
            ReconstructionError: No norm is known, or both texts have the same reconstruction.
        """
        from .evaluation import direction as _direction

        self._check_origin(away_from, "its text, and norm=: direction(to=..., away_from=text)")
        length = _direction.residual_norm(norm, away_from, self.baseline)
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
        """Compare each setting of the checkpoint with alternatives, on a few activations.

        Args:
            model: The target.
            ar: A reconstructor to measure with, opened as its own sidecar describes it; use it for
                an NLA without one, or if verbalizer and reconstructor contradict each other.
            texts: The texts that the target reads; by default a few plain English texts.
            sampling: How the explanations' tokens are chosen.
            remote: Run the target on the configured NDIF host.

        Returns:
            The variants with their figures, the settings that lose, and the checkpoint that the
            evidence supports; see `doctor.report`.

        Raises:
            InjectionError: The target does not fit, or `texts` is not a list of texts.
            CheckpointError: The checkpoint as declared cannot be run.
        """
        from .doctor.examine import diagnose

        return diagnose(self, model, ar=ar, texts=texts, sampling=sampling, remote=remote)

    def compare(
        self, before: Explanation, after: Explanation, *, claims: Claims = "check"
    ) -> _compare.Comparison:
        """Compare two explanations: their words, their vectors, and the meaning of the texts.

        Args:
            before: A handle.
            after: A handle of the same shape; if one of the two is scalar, every row is compared
                with it.
            claims: ``"ignore"`` compares vectors of different models or blocks anyway; their cosine
                is then meaningless.

        Returns:
            In their shape: both texts, the words `added` and `removed`, the `cosine` between the
            vectors, and the `text_distance`, 1 − the cosine between the reconstructions of the two
            texts (``None`` without a reconstructor).

        Raises:
            VerbalizationError: One of them is not a handle, or their shapes do not match.
            InjectionError: Their vectors are of different models or blocks.
        """
        from .evaluation import compare as _compare

        if isinstance(before, Explanation) and isinstance(after, Explanation):
            after.check_origin(before.origin, insist="claims='ignore'", claims=claims)
        reconstruct = self.reconstruct if self.has_reconstructor else None
        return _compare.compare(before, after, reconstruct)

    def info(self) -> dict[str, Any]:
        """Return the settings of this NLA as plain data; never loads weights."""
        judge = self._need_reconstructor().runtime if self.has_reconstructor else None
        return {
            **self._verbalizer.info(),
            "layers": list(self.layers),
            "sampling": vars(self.sampling),
            "engine": self._engine.engine_info(),
            "reconstructor": judge.name if judge else None,
            "reconstructor_base": judge.base if judge else None,
            "baseline": self.baseline.to_dict() if self.baseline else None,
            "source": dict(self.checkpoint.source),
        }

    def status(self) -> HostStatus:
        """Ask the configured NDIF host whether it can run this NLA now."""
        from .remote.ndif import status

        return status(self.av, self.checkpoint.base_model)

    def __repr__(self) -> str:
        if self.runtime is None:  # pyright: ignore[reportUnnecessaryComparison]
            return f"<NLA of another process, layer={self.checkpoint.layer}>"
        state = "remote" if self.remote else "loaded" if self.runtime.loaded else "not loaded"
        layer, d_model = self.checkpoint.layer, self.checkpoint.d_model
        base = "" if self.runtime.base is None else f" on {self.runtime.base!r}"
        return f"<NLA {self.runtime.name!r}{base} layer={layer} d_model={d_model} {state}>"

    def __copy__(self) -> NLA:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> NLA:
        return self

    def capture(
        self,
        flat: Tensor | None,
        shape: tuple[int, ...],
        *,
        question: AskOptions | None = None,
        slots: Sequence[int] = (),
        **options: Unpack[CaptureOptions],
    ) -> Capture:
        """Check the options of one ``explain()`` or ``ask()`` call and record its vectors.

        Args:
            flat: The vectors; ``None`` under fake tensors.
            shape: The handle's shape.
            question: What is asked about them.
            slots: The number of vectors of each row, if they are grouped.
            options: The other options.
        """
        layer = options.get("layer")
        if layer is not None and self.runtime is not None:  # pyright: ignore[reportUnnecessaryComparison]
            other = self._for_layer(layer, options.get("claims", "check"))
            if other is not self:
                return other.capture(flat, shape, question=question, slots=slots, **options)
        tokenizer = None if self.runtime is None else self.av.tokenizer
        if question is None and slots:
            prompts = (self.prompt,) * len(slots)
            options["asked"] = Asked((), prompts, tuple(slots), self.checkpoint.layer)
        elif question is not None:
            options["asked"] = self._asked(question, slots, shape, options.get("sampling"))
        return captured(
            flat, shape, self.queue, self.labeller, self.sampling, tokenizer,
            checkpoint=self.checkpoint, **options,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """The verbalizer's name, for messages."""
        return "This NLA" if self.runtime is None else self.runtime.name  # pyright: ignore[reportUnnecessaryComparison]

    def _asked(
        self,
        question: AskOptions,
        slots: Sequence[int],
        shape: tuple[int, ...],
        sampling: Sampling | None,
    ) -> Asked:
        """Check a question and render its prompt."""
        chosen = check_sampling(sampling) or self.sampling
        return self._asker.asked(slots=slots, shape=shape, sampling=chosen, **question)

    def _check_origin(self, handle: object, insist: str) -> None:
        """Refuse a handle on vectors of another model or block than this NLA's."""
        if isinstance(handle, Explanation):
            handle.check_origin(Origin.of(self.checkpoint), insist=insist)

    def _need_reconstructor(self) -> Reconstructor:
        if self._reconstructor is None:
            if self._own_ar is not None and self.checkpoint.slots > 1:
                raise CheckpointError(
                    f"A reconstructor gives one vector for a text, and this verbalizer explains "
                    f"{self.checkpoint.slots} at once, so its texts have no scores. Use one that "
                    "explains single vectors, and nla.explain_difference(a, b)."
                )
            if self._own_ar is not None:
                raise CheckpointError(
                    f"The reconstructor is of layer {self._template.layer}, and this NLA reads "
                    f"layer {self.checkpoint.layer}. Use nla.at_layer({self._template.layer})."
                )
            if self.checkpoint.asks:
                raise CheckpointError(
                    "An oracle's answers are not reconstructed: nothing turns them back into "
                    "vectors. handle.trust says what it answers without them."
                )
            raise CheckpointError(
                "This NLA has no reconstructor. Pass one: NLA(av, ar='path or id')."
            )
        return self._reconstructor


pickling.join_requests(NLA)
