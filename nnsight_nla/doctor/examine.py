"""Compare each declared setting of a checkpoint with alternatives, on a few activations.

A verbalizer with the wrong layer, or injected at the wrong block, still writes fluent text. The
doctor therefore compares the declared value of each setting with other values: the layer with its
neighbours, the template with the published one, and so on, one setting at a time, with everything
else as declared. If a declared value loses, the doctor replaces it with the winner and repeats the
comparisons that other settings lost, so that one broken setting is not reported as five::

    diagnosis = nla.doctor(model)
    print(diagnosis.conclusion)    # The declared layer loses; the evidence supports block 3.
    nla = NLA(path, checkpoint=diagnosis.checkpoint)

Two broken settings are found one after the other, if some signal is left with both. The module
`report` describes what counts as evidence.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nnsight
import torch
from torch import Tensor

from ..checkpoint import dialects, sidecar
from ..checkpoint.prompt import Prompt
from ..core.sampling import Sampling
from ..core.similarity import cosine
from ..errors import CheckpointError, InjectionError, NLAError, TextError, shown
from ..evaluation.reconstructor import Reconstructor
from ..explanation.asked import check_single
from ..models import hosts, weights
from ..models.adapter import AdapterModel
from ..models.open import OpenOptions, open_reconstructor
from ..remote.ndif import send
from ..verbalize.likelihood import likelihoods
from ..verbalize.verbalizer import Verbalizer
from .report import Diagnosis, Figures, Finding, Verdict, advantage, variant
from .variants import SETTINGS, Candidate, Context, token_ids, variants

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float
    from nnsight.modeling.transformers import TransformersModel

    from ..explanation.protocols import Explains, ExplainsAndReconstructs
    from ..explanation.records import Reply

TEXTS = (
    "What a lovely day! People in Paris speak French.",
    "This story is about a dog. The dog lives in the house.",
    "We talk about Japan. The capital of Japan is Tokyo.",
    "The doctor works in the hospital. It is a sad morning.",
    "This story is about a nurse. The nurse uses a syringe.",
    "We talk about Italy. People in Italy eat pasta.",
    "How sad! The cow lives in the barn. The cow eats grass.",
    "Rome is the capital of Italy. People in Rome speak Italian.",
)
"""The texts that the target reads by default: plain English on different subjects."""
_TIE_ORDER = (
    "thinking block", "marker", "injection layer", "injection mode", "layer", "template",
    "tokenizer",
)  # fmt: skip
"""Which setting is reported first if several replacements gain equally, narrow ones first.

Replacing the tokenizer, for example, also replaces the chat template."""
_TIE = 0.02
"""Gains that differ by less than this are equal."""
_MAX_BROKEN = 3
_LATE_POSITIONS = [-1, -3, -5, -7]


@dataclass(frozen=True)
class Replies:
    """What the verbalizer wrote with one candidate, and how likely each reply is."""

    replies: list[Reply]
    """One per vector."""
    with_vector: Float[Tensor, " rows"]
    """The log-likelihood of each reply with its vector injected, in nats per token."""
    without_vector: Float[Tensor, " rows"]
    """The log-likelihood of the same reply with nothing injected."""


class Doctor:
    """Compares candidates for one NLA's checkpoint on the activations of one target."""

    def __init__(
        self,
        nla: ExplainsAndReconstructs,
        model: TransformersModel,
        texts: Sequence[str],
        sampling: Sampling,
        reconstruct: Callable[[list[str]], Tensor] | None,
        *,
        remote: bool = False,
    ) -> None:
        """Read the target's activations at every layer that may be compared.

        Args:
            nla: The NLA.
            model: Its target.
            texts: What the target reads.
            sampling: How the explanations' tokens are chosen.
            reconstruct: Turns texts into vectors; ``None`` to compare likelihoods instead.
            remote: Run the target on the configured NDIF host.

        Raises:
            InjectionError: The target has another width, or no block of the declared index.
        """
        self.nla, self.model, self.sampling = nla, model, sampling
        self.reconstruct = reconstruct
        depth = hosts.text_config(model).num_hidden_layers
        layer = nla.checkpoint.layer
        near = [each for each in (layer, layer - 1, layer + 1) if 0 <= each < depth]
        if layer not in near:
            raise InjectionError(
                f"{hosts.describe(model)} has blocks 0 to {depth - 1}, the checkpoint says block "
                f"{layer}. Pass the model that the verbalizer was trained for."
            )
        self.vectors = _residuals(nla, model, near, texts, remote)
        self.context = Context(
            model.tokenizer,
            near,
            self.vectors[layer].norm(dim=-1).mean().item(),
            hosts.text_config(nla.av).num_hidden_layers,
            nla.prompt.ids,
            nla.remote,
        )
        self._replies: dict[Hashable, Replies | str] = {}
        self._measured: dict[Hashable, Figures | str] = {}

    def run(self) -> Diagnosis:
        """Compare every setting, replace the values that lose, and report.

        Raises:
            CheckpointError: The checkpoint as declared cannot be run.
        """
        start = Candidate("as declared", self.nla.checkpoint, self.nla.av.tokenizer)
        current, findings = start, self._findings(start, SETTINGS)
        first, broken = findings, []
        for _ in range(_MAX_BROKEN):
            lost = [(gain, name) for name, (_, gain, _) in findings.items() if gain > 0]
            if not lost:
                break
            most = max(gain for gain, _ in lost)
            tied = [each for gain, each in lost if gain >= most - _TIE]
            name = min(tied, key=_TIE_ORDER.index)
            winner = findings[name][2]
            if name in broken or winner is None:
                break
            broken.append(name)
            current = winner
            rest = [each for _, each in lost if each not in broken]
            findings = self._findings(current, rest)
        final = self._figures(current)
        vectors = self.vectors[self.nla.checkpoint.layer]
        return Diagnosis(
            tuple(finding for finding, _, _ in first.values()),
            tuple(broken),
            current.checkpoint,
            not isinstance(final, str) and final.reads,
            len(vectors),
            "likelihood" if self.reconstruct is None else "reconstructor",
        )

    def _findings(
        self, declared: Candidate, settings: Sequence[str]
    ) -> dict[str, tuple[Finding, float, Candidate | None]]:
        """Map each setting to its finding, the best alternative's gain, and that alternative."""
        tried = {name: variants(name, declared, self.context) for name in settings}
        lists = [found for _, found in tried.values() if not isinstance(found, str)]
        with self.nla.runtime.use():  # Load the weights once for all candidates.
            if not isinstance(self._reply(declared), str):
                for each in itertools.chain(*lists):
                    self._reply(each)
        base = self._figures(declared)
        if isinstance(base, str):
            raise CheckpointError(f"The checkpoint as declared cannot be run: {base}")
        return {name: self._finding(name, *found, base) for name, found in tried.items()}

    def _finding(
        self, name: str, value: str, others: Sequence[Candidate] | str, base: Figures
    ) -> tuple[Finding, float, Candidate | None]:
        shown = variant(value, base, declared=True)
        if isinstance(others, str):
            return Finding(name, "not tried", (shown,), note=others), 0.0, None
        tried = [(each, self._figures(each)) for each in others]
        gains = [
            (0.0 if isinstance(found, str) else advantage(found, base), index)
            for index, (_, found) in enumerate(tried)
        ]
        gain, index = max(gains, key=lambda pair: pair[0])
        worse = [isinstance(found, str) or advantage(base, found) > 0 for _, found in tried]
        verdict: Verdict = "loses" if gain > 0 else "supported" if all(worse) else "undecided"
        rows = (shown, *(variant(each.value, found) for each, found in tried))
        best = tried[index][0] if gain > 0 else None
        return Finding(name, verdict, rows, best.value if best else None), gain, best

    def _figures(self, candidate: Candidate) -> Figures | str:
        """Measure a candidate, once; return the reason if it cannot be run."""
        key = _key(candidate)
        if key not in self._measured:
            said = self._reply(candidate)
            self._measured[key] = said if isinstance(said, str) else self._measure(candidate, said)
        return self._measured[key]

    def _reply(self, candidate: Candidate) -> Replies | str:
        """Run the verbalizer with a candidate, once; return the reason if it cannot be run."""
        key = _key(candidate)
        if key not in self._replies:
            try:
                self._replies[key] = self._run(candidate)
            except NLAError as error:
                self._replies[key] = str(error)
        return self._replies[key]

    def _run(self, candidate: Candidate) -> Replies:
        checkpoint, tokenizer = candidate.checkpoint, candidate.tokenizer
        vectors, prompt = self.vectors[checkpoint.layer], Prompt.render(checkpoint, tokenizer)
        verbalizer = Verbalizer(self.nla.runtime, checkpoint, prompt, tokenizer=tokenizer)
        rows = len(vectors)
        everyone = torch.ones(rows, dtype=torch.bool, device="cpu")
        with self.nla.runtime.use():
            found = dict(verbalizer.verbalize(vectors, everyone, [0] * rows, self.sampling))
            replies = [found[row] for row in range(rows)]
            ids = [token_ids(tokenizer, reply.raw) or [0] for reply in replies]
            with_vector = likelihoods(verbalizer, vectors, everyone, ids)
            without_vector = likelihoods(verbalizer, vectors, ~everyone, ids)
        return Replies(replies, with_vector, without_vector)

    def _measure(self, candidate: Candidate, said: Replies) -> Figures | str:
        good = torch.tensor([reply.problem is None for reply in said.replies], device="cpu")
        vectors = self.vectors[candidate.checkpoint.layer]
        try:
            own, others = self._cosines(said.replies, good, vectors)
        except NLAError as error:
            return str(error)
        effect = said.with_vector - said.without_vector
        return Figures(good, effect, said.with_vector, own, others, said.replies[0].text)

    def _cosines(
        self, replies: list[Reply], good: Tensor, vectors: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        if self.reconstruct is None:
            return None, None
        rows = len(vectors)
        table = torch.zeros(
            rows, rows, dtype=torch.float32, device="cpu"
        )  # Row i, column j: vector i with the text of row j.
        for j, vector in self._reconstructed(replies, torch.nonzero(good).flatten().tolist()):
            table[:, j] = cosine(vector.expand_as(vectors), vectors)
        own = table.diagonal()
        return own.clone(), (table.sum(dim=1) - own) / max(rows - 1, 1)

    def _reconstructed(self, replies: list[Reply], rows: list[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield each row with its text's reconstruction; leave out texts that have none."""
        if self.reconstruct is None or not rows:
            return
        try:
            yield from zip(rows, self.reconstruct([replies[j].text for j in rows]), strict=True)
        except TextError:
            for j in rows:
                with suppress(TextError):
                    yield j, self.reconstruct([replies[j].text])[0]


def diagnose(
    nla: ExplainsAndReconstructs,
    model: TransformersModel,
    *,
    ar: str | Path | None = None,
    texts: Sequence[str] | None = None,
    sampling: Sampling | None = None,
    remote: bool = False,
) -> Diagnosis:
    """Compare each setting that an NLA's checkpoint declares with alternatives.

    Args:
        nla: The NLA.
        model: Its target.
        ar: A reconstructor to measure with, opened as its own sidecar describes it; the NLA's own
            unless given. It may contradict the verbalizer, which `NLA` itself does not allow.
        texts: What the target reads; plain English sentences unless given.
        sampling: How the explanations' tokens are chosen.
        remote: Run the target on the configured NDIF host.

    Raises:
        InjectionError: `texts` is not a list of non-empty strings, or the target does not fit.
        CheckpointError: The checkpoint as declared cannot be run.
    """
    check_single(nla.checkpoint, "doctor")
    chosen = TEXTS if texts is None else texts
    if (
        isinstance(chosen, str)
        or not chosen
        or not all(
            isinstance(each, str) and each.strip()  # pyright: ignore
            for each in chosen
        )
    ):
        raise InjectionError(
            f"texts={shown(texts)}: expected a list of non-empty strings for the target to read."
        )
    reconstruct = nla.reconstruct if nla.has_reconstructor else None
    if ar is not None:
        reconstruct = reconstructor_of(ar, nla).reconstruct
    doctor = Doctor(nla, model, chosen, sampling or Sampling(), reconstruct, remote=remote)
    return replace(doctor.run(), texts=tuple(chosen))


def reconstructor_of(ar: str | Path, nla: Explains) -> Reconstructor:
    """Open a reconstructor as its own sidecar describes it.

    Its layer may differ from the one that the verbalizer declares. An adapter runs on the weights
    that the verbalizer's adapter runs on.
    """
    own = _own_layer(ar)
    checkpoint = nla.checkpoint if own is None else replace(nla.checkpoint, layer=own, layers=None)
    target = nla.av.target if isinstance(nla.av, AdapterModel) else None
    options = OpenOptions(target, nla.remote, nla.runtime.memory, {})
    return Reconstructor(open_reconstructor(ar, options, checkpoint), checkpoint)


def _own_layer(ar: str | Path) -> int | None:
    try:
        file = sidecar.find(str(ar), ())
    except CheckpointError:
        return None
    if file is None:
        return None
    values, _ = dialects.find_fields(sidecar.read(file), str(file))
    return values.get("layer")


def _residuals(
    nla: Explains, model: TransformersModel, layers: list[int], texts: Sequence[str], remote: bool
) -> dict[int, Tensor]:
    """Map each block to ``[rows, d_model]``: late tokens of each text, as early ones are noisy."""
    nla.layer(model)  # Raises for a target of another width.
    ordered = sorted(layers)
    found: dict[int, list[Tensor]] = {layer: [] for layer in ordered}
    for text in texts:
        for layer, residual in zip(ordered, _read(model, text, ordered, remote), strict=True):
            rows = (
                residual[_LATE_POSITIONS].detach() if len(residual) > 7 else residual[-1:].detach()
            )
            found[layer] += list(rows)
    return {layer: torch.stack(rows) for layer, rows in found.items()}


def _read(model: TransformersModel, text: str, layers: list[int], remote: bool) -> list[Tensor]:
    envoys = [hosts.block(model, layer) for layer in layers]
    if remote:
        return send(lambda: _trace(model, text, envoys, {"remote": True}), "Reading the target")
    weights.load(model)
    return _trace(model, text, envoys, {})


def _trace(
    model: TransformersModel, text: str, envoys: list[Any], options: dict[str, Any]
) -> list[Tensor]:
    with torch.no_grad(), model.trace(text, **options):
        read = nnsight.save([])
        for envoy in envoys:
            read.append(envoy.output[0].float().cpu())
    return read


def _key(candidate: Candidate) -> Hashable:
    fields = tuple(value for name, value in vars(candidate.checkpoint).items() if name != "source")
    return (*map(repr, fields), id(candidate.tokenizer))
