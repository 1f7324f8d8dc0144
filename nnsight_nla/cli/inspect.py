"""Inspect a few vectors or a checkpoint: ``nnsight-nla demo | explain | read | info``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from ..errors import NLAError, VerbalizationError
from . import options
from .app import app, load, out, print_json, spinner
from .tables import (
    checked_table,
    explanation_table,
    patch_table,
    reading_table,
    sentence_table,
    sweep_table,
)


@app.command()
def demo(
    sentences: Annotated[int, Option(min=1, help="The number of sentences to read.")] = 2,
    seed: Annotated[int, Option(help="The seed that chooses the sentences of tiny.")] = 3,
    model: options.Model = "tiny",
    as_json: options.AsJson = False,
) -> None:
    """Explain a few sentences with an embedded pair and patch one fact, next to the truth.

    Needs no network and no GPU.
    """
    if model == "smollm2":
        _demo_smollm2(sentences, as_json=as_json)
        return
    with spinner("loading the embedded pair"):
        from .. import tiny
        from ..tiny.demo import patch_fact, read_sentences

        target, nla = tiny.load()
    with spinner("verbalizing"):
        read = read_sentences(target, nla, sentences, seed)
        patched = patch_fact(target, nla)
    if as_json:
        print_json(
            {"sentences": [list(map(asdict, each)) for each in read], "patch": asdict(patched)}
        )
        return
    for each in read:
        out.print(sentence_table(each))
    out.print(patch_table(patched))
    slots = [row.slots_right for each in read for row in each]
    out.print(
        f"{sum(slots)} of {6 * len(slots)} slots are right, on combinations of subject and tone "
        "that were not in any training. The state was put into this small target on purpose; "
        "outside its world of facts the pair confabulates. The measured accuracy and the "
        "controls: nnsight_nla.tiny.figures()"
    )


def _demo_smollm2(sentences: int, *, as_json: bool) -> None:
    with spinner("loading SmolLM2 (the first time, half a minute)"):
        from .. import smollm2
        from ..smollm2.demo import patch_fact, read_sentences

        target, nla = smollm2.load()
    with spinner("verbalizing"):
        read = read_sentences(target, nla, sentences)
        patched = patch_fact(target, nla)
    if as_json:
        print_json({"sentences": list(map(asdict, read)), "patch": patched.rows()})
        return
    out.print(checked_table(read))
    out.print(sweep_table(patched))
    out.print(
        "The lines were learned from labels that a programme made, and are checked against the "
        "text and the target's own next tokens; whether the subject fits is yours to judge. The "
        "measured accuracy and the controls: nnsight_nla.smollm2.figures()"
    )


@app.command()
def explain(
    text: options.Text,
    position: Annotated[
        str,
        Option(help="Which token: an index (-1 is the last), several (0,3,-1), or 'all'."),
    ] = "-1",
    model: options.Model = "tiny",
    av: options.Av = None,
    ar: options.Ar = None,
    target: options.Target = None,
    max_new_tokens: options.MaxNewTokens = 200,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """Explain the residual of TEXT at one token or several."""
    with spinner("loading"):
        from ..core.sampling import Sampling
        from ..models import weights

        target_model, nla = load(av, ar, target, dtype, device_map, pair=model)
        (span,) = nla.positions(target_model, text)
        wanted = _positions(position, len(span.ids))
    sampling = Sampling(max_new_tokens=max_new_tokens)
    with spinner("verbalizing"):
        weights.load(target_model)
        with target_model.trace(text):
            residual = nla.layer(target_model).output[0, span.slice]
            thoughts = nla.explain(
                residual[wanted],
                tokens=[span.tokens[i] for i in wanted],
                positions=wanted,
                sampling=sampling,
            )
        nla.resolve()
    if as_json:
        print_json({"text": text, "layer": nla.checkpoint.layer, **thoughts.to_dict()})
    else:
        out.print(explanation_table(thoughts))


@app.command()
def read(
    text: options.Text,
    html: Annotated[
        Path | None, Option(help="Write the reading as one HTML file for a browser.")
    ] = None,
    positions: Annotated[
        str,
        Option(
            "--position",
            help="Which tokens: 'all', 'reply', an index (-1 is the last), or several.",
        ),
    ] = "all",
    generate: Annotated[
        int | None, Option(min=1, help="Let the target write up to this many tokens first.")
    ] = None,
    chat: Annotated[bool, Option("--chat", help="TEXT is a user message of a chat.")] = False,
    model: options.Model = "tiny",
    av: options.Av = None,
    ar: options.Ar = None,
    target: options.Target = None,
    max_new_tokens: options.MaxNewTokens = 200,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """Explain every token of TEXT in a table, or on a page with --html."""
    if html is not None and not html.parent.is_dir():
        raise NLAError(f"--html {html}: there is no folder {html.parent}.")
    with spinner("loading"):
        from ..core.sampling import Sampling

        target_model, nla = load(av, ar, target, dtype, device_map, pair=model)
    with spinner("reading"):
        found = nla.read(
            target_model,
            [{"role": "user", "content": text}] if chat else text,
            positions=positions if positions in ("all", "reply") else _indices(positions),
            generate=generate,
            sampling=Sampling(max_new_tokens=max_new_tokens),
        )
        if html is not None:
            found.to_html(html)
    if as_json:
        about = {"target": found.target, "verbalizer": found.verbalizer, "layer": found.layer}
        print_json({**about, "tokens": list(map(asdict, found))})
    elif html is not None:
        out.print(f"{len(found.positions)} of {len(found)} tokens explained: {html}")
    else:
        out.print(reading_table(found))


@app.command()
def info(
    checkpoint: Annotated[
        str, Argument(metavar="CHECKPOINT", help="A folder, a sidecar file or a Hub id.")
    ],
    as_json: options.AsJson = False,
) -> None:
    """Show the settings of a checkpoint, and where each value was found."""
    from ..checkpoint.checkpoint import Checkpoint

    found = Checkpoint.load(checkpoint)
    fields = {name: value for name, value in asdict(found).items() if name != "source"}
    if as_json:
        print_json({**fields, "source": dict(found.source)})
        return
    table = Table("field", "value", "found at", title=checkpoint, title_justify="left")
    for name, value in fields.items():
        shown = repr(found.injection) if name == "injection" else str(value)
        table.add_row(name, Text(shown), Text(found.source.get(name, "")))
    out.print(table)


def _positions(position: str, length: int) -> list[int]:
    """Return the requested positions, counted from the left."""
    if position == "all":
        return list(range(length))
    given = _indices(position)
    for index in given:
        if not -length <= index < length:
            raise VerbalizationError(
                f"--position {index}: the text has {length} tokens, 0 to {length - 1}."
            )
    return [index % length for index in given]


def _indices(position: str) -> list[int]:
    try:
        return [int(part) for part in position.split(",")]
    except ValueError as error:
        raise VerbalizationError(
            f"--position {position!r}: expected an index, several (0,3,-1), or 'all'."
        ) from error
