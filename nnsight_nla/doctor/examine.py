"""A doctor for checkpoints: every setting tried against its neighbours, on a few activations.

A checkpoint that is wrong by one layer, or written at the wrong block, still talks fluently. So the
declared value of each setting is held against others: the layer against the ones beside it, the
template against the published one, and so on, one at a time, all else as declared. Where the
declared value loses, the winner is put in and the other losses are looked at again, so that one
broken setting is one name and not five::

    diagnosis = nla.doctor(model)
    print(diagnosis.conclusion)    # The declared layer loses; the evidence supports block 3.
    nla = NLA(path, checkpoint=diagnosis.checkpoint)

Two settings that are broken at once are found one after the other as long as each leaves some
signal. What `diagnosis` calls evidence is described there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nnsight
import torch
from torch import Tensor

from ..checkpoint import dialects, sidecar
from ..checkpoint.prompt import Prompt
from ..checkpoint.reply import proper
from ..core.sampling import Sampling
from ..core.similarity import cosine
from ..errors import CheckpointError, InjectionError, NLAError, ReconstructionError
from ..evaluation.reconstructor import Reconstructor
from ..models import hosts, reconstructor_files
from ..models.loading import load_model, load_tokenizer
from ..remote.ndif import send
from ..verbalize.likelihood import likelihoods
from ..verbalize.verbalizer import Verbalizer
from .report import Diagnosis, Figures, Finding, Verdict, advantage, variant
from .variants import SETTINGS, Place, Try, token_ids, variants

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nnsight import TransformersModel

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
"""What the target reads, unless you pass your own: plain English, on different things."""
_NARROWEST = (
    "thinking block", "marker", "injection layer", "injection mode", "layer", "template",
    "tokenizer",
)  # fmt: skip
"""Who is named where several repair as much: another tokenizer, say, brings its chat template."""
_TIE = 0.02
_ROUNDS = 3
_FROM_THE_END = [-1, -3, -5, -7]


class Doctor:
    """Tries variants of one NLA's checkpoint on one target's activations."""

    def __init__(
        self,
        nla: Any,
        model: TransformersModel,
        texts: Sequence[str],
        sampling: Sampling,
        reconstruct: Callable[[list[str]], Tensor] | None,
        *,
        remote: bool = False,
    ) -> None:
        """Read the target once, at every layer that may be asked for."""
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
        self.place = Place(
            model.tokenizer,
            near,
            self.vectors[layer].norm(dim=-1).mean().item(),
            hosts.text_config(nla.av).num_hidden_layers,
            nla.prompt.ids,
            nla.remote,
        )
        self._seen: dict[tuple[Any, ...], Figures | str] = {}

    def examine(self) -> Diagnosis:
        """Try every setting, put right what loses, and look again."""
        start = Try("as declared", self.nla.checkpoint, self.nla.av.tokenizer)
        current, findings = start, self._findings(start, SETTINGS)
        first, broken = findings, []
        for _ in range(_ROUNDS):
            lost = [(gain, name) for name, (_, gain, _) in findings.items() if gain > 0]
            if not lost:
                break
            most = max(gain for gain, _ in lost)
            alike = [each for gain, each in lost if gain >= most - _TIE]
            name = min(alike, key=_NARROWEST.index)
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
        self, declared: Try, settings: Sequence[str]
    ) -> dict[str, tuple[Finding, float, Try | None]]:
        """Setting to its finding, what the best other variant gains, and that variant."""
        base = self._figures(declared)
        if isinstance(base, str):
            raise CheckpointError(f"The checkpoint as declared cannot be run: {base}")
        return {name: self._finding(name, declared, base) for name in settings}

    def _finding(
        self, name: str, declared: Try, base: Figures
    ) -> tuple[Finding, float, Try | None]:
        value, others = variants(name, declared, self.place)
        if isinstance(others, str):
            shown = (variant(value, base, declared=True),)
            return Finding(name, "not tried", shown, note=others), 0.0, None
        tried = [(each, self._figures(each)) for each in others]
        gains = [
            (0.0 if isinstance(found, str) else advantage(found, base), place)
            for place, (_, found) in enumerate(tried)
        ]
        gain, place = max(gains, key=lambda pair: pair[0])
        worse = [not isinstance(found, str) and advantage(base, found) > 0 for _, found in tried]
        failed = [isinstance(found, str) for _, found in tried]
        verdict: Verdict = "undecided"
        if gain > 0:
            verdict = "loses"
        elif all(one or two for one, two in zip(worse, failed, strict=True)):
            verdict = "supported"
        rows = tuple(variant(each.value, found) for each, found in tried)
        shown = (variant(value, base, declared=True), *rows)
        best = tried[place][0] if gain > 0 else None
        return Finding(name, verdict, shown, best.value if best else None), gain, best

    def _figures(self, tried: Try) -> Figures | str:
        """Run one variant; what it was already tried with is remembered."""
        fields = tuple(value for name, value in vars(tried.checkpoint).items() if name != "source")
        key = (*map(repr, fields), id(tried.tokenizer))
        if key not in self._seen:
            try:
                self._seen[key] = self._run(tried)
            except NLAError as error:
                self._seen[key] = str(error)
        return self._seen[key]

    def _run(self, tried: Try) -> Figures:
        vectors = self.vectors[tried.checkpoint.layer]
        prompt = Prompt.render(tried.checkpoint, tried.tokenizer)
        with _tokenizer(self.nla.av, tried.tokenizer):
            half = Verbalizer(self.nla.av, tried.checkpoint, prompt, remote=self.nla.remote)
            rows = len(vectors)
            everyone = torch.ones(rows, dtype=torch.bool)
            found = dict(half.verbalize(vectors, everyone, [0] * rows, self.sampling))
            replies = [found[row] for row in range(rows)]
            ids = [token_ids(tried.tokenizer, reply.raw) or [0] for reply in replies]
            sure = likelihoods(half, vectors, everyone, ids)
            alone = likelihoods(half, vectors, ~everyone, ids)
        good = torch.tensor([proper(reply.raw) is None for reply in replies])
        own, others = self._cosines(replies, good, vectors)
        return Figures(good, sure - alone, sure, own, others, replies[0].text)

    def _cosines(
        self, replies: list[Reply], good: Tensor, vectors: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        if self.reconstruct is None:
            return None, None
        rows = len(vectors)
        table = torch.zeros(rows, rows)  # Text j with vector i.
        for j, back in self._back(replies, torch.nonzero(good).flatten().tolist()):
            table[:, j] = cosine(back.expand_as(vectors), vectors)
        own = table.diagonal()
        return own.clone(), (table.sum(dim=1) - own) / max(rows - 1, 1)

    def _back(self, replies: list[Reply], rows: list[int]) -> Iterator[tuple[int, Tensor]]:
        """Row and the vector of its text, but for texts that the reconstructor cannot read."""
        if self.reconstruct is None or not rows:
            return
        try:
            yield from zip(rows, self.reconstruct([replies[j].text for j in rows]), strict=True)
        except ReconstructionError:
            for j in rows:
                with suppress(ReconstructionError):
                    yield j, self.reconstruct([replies[j].text])[0]


def diagnose(
    nla: Any,
    model: TransformersModel,
    *,
    ar: str | Path | None = None,
    texts: Sequence[str] | None = None,
    sampling: Sampling | None = None,
    remote: bool = False,
) -> Diagnosis:
    """Hold what an NLA's checkpoint declares against its neighbours.

    Args:
        nla: The NLA.
        model: Its target.
        ar: A reconstructor to judge by, taken as its own sidecar describes it; the NLA's own
            unless given. Here the two halves may contradict each other, which an NLA refuses.
        texts: What the target reads; plain English sentences unless given.
        sampling: How the explanations' tokens are chosen.
        remote: Run the target on the configured NDIF host.

    Raises:
        InjectionError: `texts` are none, or the target does not fit.
        CheckpointError: The checkpoint as declared cannot be run at all.
    """
    chosen = TEXTS if texts is None else texts
    if (
        isinstance(chosen, str)
        or not chosen
        or not all(
            isinstance(each, str) and each.strip()  # pyright: ignore
            for each in chosen
        )
    ):
        raise InjectionError(f"texts={texts!r}: expected a list of texts for the target to read.")
    reconstruct = nla.reconstruct if nla.has_reconstructor else None
    if ar is not None:
        reconstruct = judge(ar, nla).reconstruct
    examination = Doctor(nla, model, chosen, sampling or Sampling(), reconstruct, remote=remote)
    return replace(examination.examine(), texts=tuple(chosen))


def judge(ar: str | Path, nla: Any) -> Reconstructor:
    """A reconstructor as its own sidecar describes it, whatever the verbalizer declares."""
    own = _own_layer(ar)
    checkpoint = nla.checkpoint if own is None else replace(nla.checkpoint, layer=own)
    layout = reconstructor_files.read(ar, checkpoint)
    tokenizer = load_tokenizer(ar, checkpoint)
    config = reconstructor_files.cut_config(layout.base, checkpoint.layer, {})
    load = {} if config is None or nla.remote else {"config": config}
    adapter = None if layout.adapter is None else str(layout.adapter)
    half = load_model(layout.base, tokenizer, adapter, load)
    return Reconstructor(half, checkpoint, layout, tokenizer, remote=nla.remote)


def _own_layer(ar: str | Path) -> int | None:
    try:
        file = sidecar.find(str(ar), ())
    except CheckpointError:
        return None
    if file is None:
        return None
    values, _ = dialects.find_fields(sidecar.parse(file.read_bytes(), file), str(file))
    return values.get("layer")


def _residuals(
    nla: Any, model: TransformersModel, layers: list[int], texts: Sequence[str], remote: bool
) -> dict[int, Tensor]:
    """Block to ``[rows, d_model]``: a few late tokens of each text (early ones are noisy)."""
    nla.layer(model)  # Refuses a target of another width.
    ordered = sorted(layers)
    found: dict[int, list[Tensor]] = {layer: [] for layer in ordered}
    for text in texts:
        for layer, residual in zip(ordered, _read(model, text, ordered, remote), strict=True):
            rows = residual[_FROM_THE_END].detach() if len(residual) > 7 else residual[-1:].detach()
            found[layer] += list(rows)
    return {layer: torch.stack(rows) for layer, rows in found.items()}


def _read(model: TransformersModel, text: str, layers: list[int], remote: bool) -> list[Tensor]:
    envoys = [hosts.block(model, layer) for layer in layers]
    if remote:
        return send(lambda: _trace(model, text, envoys, {"remote": True}), "Reading the target")
    return _trace(model, text, envoys, {})


def _trace(
    model: TransformersModel, text: str, envoys: list[Any], options: dict[str, Any]
) -> list[Tensor]:
    with torch.no_grad(), model.trace(text, **options):
        read = nnsight.save([])
        for envoy in envoys:
            read.append(envoy.output[0].float().cpu())
    return read


@contextmanager
def _tokenizer(av: Any, tokenizer: Any) -> Iterator[None]:
    """Let the verbalizer use another tokenizer for a while."""
    before = av.tokenizer
    try:
        av.tokenizer = tokenizer
        yield
    finally:
        av.tokenizer = before
