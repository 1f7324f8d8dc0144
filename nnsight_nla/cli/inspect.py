"""To look at a few vectors: ``nnsight-nla demo | explain | read | info``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..errors import NLAError, VerbalizationError
from .app import AsJson, app, load, out, print_json, working
from .tables import explanation_table, patch_table, reading_table, sentence_table


@app.command()
def demo(
    sentences: Annotated[int, typer.Option(min=1, help="How many sentences to read.")] = 2,
    seed: Annotated[int, typer.Option(help="Which sentences.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Read a few sentences with the embedded pair, patch one fact, show the truth beside it.

    Needs no network and no GPU.
    """
    with working("loading the embedded pair"):
        from .. import tiny
        from ..tiny.demo import patch_fact, read_sentences

        model, nla = tiny.load()
    with working("verbalizing"):
        read = read_sentences(model, nla, sentences, seed)
        patched = patch_fact(model, nla)
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
        "that no training has seen. The state was put into this small target on purpose; outside "
        "its world of facts the pair confabulates. The measured accuracy and the controls: "
        "nnsight_nla.tiny.figures()"
    )


@app.command()
def explain(
    text: Annotated[str, typer.Argument(help="The text that the target reads.")],
    position: Annotated[
        str,
        typer.Option(help="Which token: an index (-1 is the last), several (0,3,-1), or 'all'."),
    ] = "-1",
    av: Annotated[str | None, typer.Option(help="The verbalizer: a folder or a Hub id.")] = None,
    ar: Annotated[str | None, typer.Option(help="The reconstructor, likewise: for trust.")] = None,
    target: Annotated[str | None, typer.Option(help="The target: a folder or a Hub id.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest reply.")] = 200,
    dtype: Annotated[str, typer.Option(help="Of target and verbalizer, with --av.")] = "auto",
    device_map: Annotated[str | None, typer.Option(help="As in transformers, with --av.")] = None,
    as_json: AsJson = False,
) -> None:
    """Explain the residual of TEXT at a token; with the embedded pair unless --av says another."""
    with working("loading"):
        from ..core.sampling import Sampling

        model, nla = load(av, ar, target, dtype, device_map)
        (span,) = nla.positions(model, text)
        wanted = _wanted(position, len(span.ids))
    sampling = Sampling(max_new_tokens=max_new_tokens)
    with working("verbalizing"):
        with model.trace(text):
            residual = nla.layer(model).output[0, span.slice]
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
    text: Annotated[str, typer.Argument(help="The text that the target reads.")],
    html: Annotated[
        Path | None, typer.Option(help="Write the reading page, one file, for a browser.")
    ] = None,
    position: Annotated[
        str,
        typer.Option(help="Which tokens: 'all', 'reply', an index (-1 is the last), or several."),
    ] = "all",
    generate: Annotated[
        int | None, typer.Option(min=1, help="Let the target write up to so many tokens first.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="TEXT is a user's message.")] = False,
    av: Annotated[str | None, typer.Option(help="The verbalizer: a folder or a Hub id.")] = None,
    ar: Annotated[str | None, typer.Option(help="The reconstructor, likewise: for trust.")] = None,
    target: Annotated[str | None, typer.Option(help="The target: a folder or a Hub id.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest explanation.")] = 200,
    dtype: Annotated[str, typer.Option(help="Of target and verbalizer, with --av.")] = "auto",
    device_map: Annotated[str | None, typer.Option(help="As in transformers, with --av.")] = None,
    as_json: AsJson = False,
) -> None:
    """Explain every token of TEXT: a table here, or a page with --html."""
    if html is not None and not html.parent.is_dir():
        raise NLAError(f"--html {html}: there is no folder {html.parent}.")
    with working("loading"):
        from ..core.sampling import Sampling

        model, nla = load(av, ar, target, dtype, device_map)
    with working("reading"):
        found = nla.read(
            model,
            [{"role": "user", "content": text}] if chat else text,
            positions=position if position in ("all", "reply") else _indices(position),
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
    checkpoint: Annotated[str, typer.Argument(help="A folder, a sidecar file or a Hub id.")],
    as_json: AsJson = False,
) -> None:
    """Show what a checkpoint was trained with, and where each value was found."""
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


def _wanted(position: str, length: int) -> list[int]:
    """The positions that were asked for, counted from the left."""
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
