"""The command line: ``nnsight-nla demo | explain | read | info | doctor``.

Every command takes ``--json`` and then prints one JSON document on standard output, nothing else.
Exit codes: 0 done, 1 something you passed cannot be used (the message says what to type), 2 the
command line itself is wrong, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .errors import NLAError, VerbalizationError

if TYPE_CHECKING:
    from .diagnosis import Diagnosis
    from .explanation import Explanation
    from .reading import Reading
    from .tiny.demo import Patched, Read

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Natural Language Autoencoders as ordinary values of an nnsight experiment.",
)
_out = Console()
_err = Console(stderr=True)

_GRADES = {"high": "green", "medium": "yellow", "low": "red", "none": "red"}

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error, not a stack trace."""
    try:
        app()
    except NLAError as error:
        _err.print(Text(f"{type(error).__name__}: {error}", style="red"))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def demo(
    sentences: Annotated[int, typer.Option(min=1, help="How many sentences to read.")] = 2,
    seed: Annotated[int, typer.Option(help="Which sentences.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Read a few sentences with the embedded pair, patch one fact, show the truth beside it.

    Needs no network and no GPU.
    """
    with _working("loading the embedded pair"):
        from . import tiny
        from .tiny.demo import patch_fact, read_sentences

        model, nla = tiny.load()
    with _working("verbalizing"):
        read = read_sentences(model, nla, sentences, seed)
        patched = patch_fact(model, nla)
    if as_json:
        _json({"sentences": [list(map(asdict, each)) for each in read], "patch": asdict(patched)})
        return
    for each in read:
        _out.print(_sentence_table(each))
    _out.print(_patch_table(patched))
    slots = [row.slots_right for each in read for row in each]
    _out.print(
        f"{sum(slots)} of {6 * len(slots)} slots are right, on combinations of subject and tone "
        "that no training has seen. The state was put into this small target on purpose; outside "
        "its world of facts the pair confabulates. The measured accuracy and the controls: "
        "python -m nnsight_nla.tiny.evaluate"
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
    with _working("loading"):
        from .sampling import Sampling

        model, nla = _load(av, ar, target, dtype, device_map)
        (span,) = nla.positions(model, text)
        wanted = _wanted(position, len(span.ids))
    sampling = Sampling(max_new_tokens=max_new_tokens)
    with _working("verbalizing"):
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
        _json({"text": text, "layer": nla.checkpoint.layer, **thoughts.to_dict()})
    else:
        _out.print(_explanation_table(thoughts))


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
    with _working("loading"):
        from .sampling import Sampling

        model, nla = _load(av, ar, target, dtype, device_map)
    with _working("reading"):
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
        _json({**about, "tokens": list(map(asdict, found))})
    elif html is not None:
        _out.print(f"{len(found.positions)} of {len(found)} tokens explained: {html}")
    else:
        _out.print(_reading_table(found))


@app.command()
def info(
    checkpoint: Annotated[str, typer.Argument(help="A folder, a sidecar file or a Hub id.")],
    as_json: AsJson = False,
) -> None:
    """Show what a checkpoint was trained with, and where each value was found."""
    from .checkpoint import Checkpoint

    found = Checkpoint.load(checkpoint)
    fields = {name: value for name, value in asdict(found).items() if name != "source"}
    if as_json:
        _json({**fields, "source": dict(found.source)})
        return
    table = Table("field", "value", "found at", title=checkpoint, title_justify="left")
    for name, value in fields.items():
        shown = repr(found.injection) if name == "injection" else str(value)
        table.add_row(name, Text(shown), Text(found.source.get(name, "")))
    _out.print(table)


@app.command()
def doctor(
    av: Annotated[str, typer.Argument(help="The verbalizer: a folder or a Hub id.")],
    ar: Annotated[str | None, typer.Option(help="The reconstructor, to judge by.")] = None,
    target: Annotated[str | None, typer.Option(help="The target: a folder or a Hub id.")] = None,
    remote: Annotated[bool, typer.Option("--remote", help="Run all on the NDIF host.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest reply.")] = 200,
    dtype: Annotated[str, typer.Option(help="Of target and verbalizer.")] = "auto",
    device_map: Annotated[str | None, typer.Option(help="As in transformers.")] = None,
    as_json: AsJson = False,
) -> None:
    """Try each setting that AV declares against others; exit code 1 when a declared one loses."""
    with _working("examining"):
        from .checkup import check
        from .diagnosis import Diagnosis
        from .sampling import Sampling

        unusable = check(av)
        if unusable is not None:
            found = Diagnosis((unusable,), (unusable.setting,), None, False, 0)
        else:
            model, nla = _load(av, None, target, dtype, device_map, remote=remote)
            sampling = Sampling(max_new_tokens=max_new_tokens)
            found = nla.doctor(model, ar=ar, sampling=sampling, remote=remote)
    if as_json:
        _json(found.to_dict())
    else:
        if any(finding.variants for finding in found.findings):
            _out.print(_diagnosis_table(found))
        _out.print(Text(found.conclusion, style="green" if found.ok else "red"))
    if not found.ok:
        raise typer.Exit(1)


def _load(
    av: str | None,
    ar: str | None,
    target: str | None,
    dtype: str,
    device_map: str | None,
    *,
    remote: bool = False,
) -> Any:
    from . import tiny

    if av is None:
        for option, given, how in (("target", target, "for"), ("ar", ar, "with")):
            if given is not None:
                raise VerbalizationError(
                    f"--{option} {given} needs the verbalizer that was trained {how} it: "
                    "--av PATH_OR_ID."
                )
        return tiny.load()
    from nnsight import TransformersModel

    from .nla import NLA

    load = {"dtype": dtype, **({"device_map": device_map} if device_map else {})}
    nla = NLA(av, ar=ar, remote=remote, **load)
    base = target or nla.checkpoint.base_model
    if base is None:
        raise VerbalizationError(f"{av} does not name its target; add --target PATH_OR_ID.")
    try:
        return TransformersModel(base, task="text-generation", **load), nla
    except OSError as error:
        raise VerbalizationError(
            f"The target {base!r} could not be read: {str(error).splitlines()[0]} "
            "Give a local folder with --target."
        ) from error


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


def _sentence_table(rows: list[Read]) -> Table:
    table = Table(title=" ".join(row.token for row in rows), title_justify="left", pad_edge=False)
    for name in ("token", "expects", "explanation of the residual", "truth", "right"):
        table.add_column(name, overflow="fold")
    for row in rows:
        style = "green" if row.slots_right == 6 else "yellow" if row.slots_right >= 4 else "red"
        right = Text(f"{row.slots_right}/6", style=style)
        said, true = row.explanation.splitlines(), row.truth.splitlines()
        differs = [line for line in true if line not in said]
        truth = Text("\n".join(differs), style=style) if differs else Text("the same", "green")
        table.add_row(row.token, row.expected, _one_line(row.explanation), truth, right)
    return table


def _patch_table(patched: Patched) -> Table:
    table = Table(
        "",
        "target's next word",
        "explanation at the last token",
        title=f"{patched.prompt} …   patched at {patched.where}",
        title_justify="left",
    )
    for name, word, text in zip(
        ("before", "after"), patched.predicted, patched.explanation, strict=True
    ):
        table.add_row(name, word, _one_line(text))
    return table


def _diagnosis_table(found: Diagnosis) -> Table:
    from .diagnosis import shown

    judged = "the reconstruction" if found.judge == "reconstructor" else "the replies' likelihood"
    table = Table(
        title=f"{found.rows} activations; the verdict rests on {judged}",
        title_justify="left",
        caption="effect: what the vector adds to the reply's likelihood, nats per token",
        caption_justify="left",
    )
    for name in ("setting", "value", "extraction", "effect", "AR cosine", "verdict"):
        table.add_column(name, overflow="fold")
    styles = {"loses": "red", "fails": "red", "supported": "green"}
    for finding in found.findings:
        for variant in finding.variants:
            verdict = finding.verdict if variant.declared else variant.error or ""
            note = f": {finding.note}" if variant.declared and finding.note else ""
            table.add_row(
                finding.setting if variant.declared else "",
                Text(variant.value, style="bold" if variant.declared else ""),
                *map(shown, (variant.extraction, variant.effect, variant.cosine)),
                Text(verdict + note, style=styles.get(verdict, "")),
            )
    return table


def _explanation_table(thoughts: Explanation) -> Table:
    records = thoughts.to_dict()["explanations"]
    labels = [record["trust"] for record in records]
    columns = ["position", "token", "explanation", *(["trust"] if any(labels) else []), "notes"]
    over = [str(label.baseline) for label in thoughts.trust or [] if label.baseline]
    table = Table(*columns, caption=f"FVE over {over[0]}" if over else None, caption_justify="left")
    for record, label in zip(records, labels, strict=True):
        table.add_row(
            str(record["position"]),
            Text(repr(record["token"])),
            Text(record["text"] or f"no text: this vector {record['error']}"),
            *([_label(label)] if label else []),
            Text("\n".join(record["warnings"])),
        )
    return table


def _label(label: dict[str, Any]) -> Text:
    """A trust label with a figure a line, in its grade's colour."""
    grade, _, figures = label["line"].removeprefix("trust: ").partition(" ")
    shown = Text(grade, style=_GRADES[label["grade"]])
    return shown.append("\n" + figures[1:-1].replace("; ", "\n"), style="default")


def _reading_table(reading: Reading) -> Table:
    scored = any(record.grade for record in reading)
    table = Table("position", "token", "explanation", *(["trust"] if scored else []))
    for record in reading:
        if record.read:
            said = record.explanation or f"no text: this vector {record.error}"
            trust = [Text(_trust(record.grade, record.cosine))] if scored else []
            token = Text(repr(record.token))
            table.add_row(str(record.position), token, _one_line(said), *trust)
    return table


def _trust(grade: str | None, cosine: float | None) -> str:
    return (grade or "") if cosine is None else f"{grade} {cosine:.2f}"


def _one_line(text: str) -> Text:
    return Text(" / ".join(text.splitlines()))


def _json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2))  # noqa: T201


def _working(what: str) -> Any:
    """A spinner on standard error, where a person watches; the host's own bars are switched off."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return _err.status(what) if _err.is_terminal else nullcontext()
