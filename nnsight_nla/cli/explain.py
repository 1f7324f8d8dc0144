"""Explain a text: ``nnsight-nla explain | read``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.text import Text
from typer import Option

from ..errors import NLAError
from . import options, tokens
from .app import command, load, out, print_json, spinner
from .pages import check_folder, open_page
from .tables import explanation_table, reading_table

if TYPE_CHECKING:
    from ..nla import NLA

PAGE = Path("nnsight-nla-reading.html")
"""The page of `read --open`, in the current folder."""


@command()
def explain(
    text: options.Text,
    position: options.Position = "-1",
    model: options.Model = "tiny",
    av: options.Av = None,
    ar: options.Ar = None,
    target: options.Target = None,
    layer: options.Layer = None,
    insist: options.InsistLayer = False,
    samples: options.Samples = 1,
    temperature: options.Temperature = 0.0,
    seed: options.SamplingSeed = 0,
    max_new_tokens: options.MaxNewTokens = 200,
    upto: options.Upto = None,
    remote: options.Remote = False,
    engine: options.Engine = "fast",
    vllm: options.Vllm = None,
    url: options.Url = None,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """Explain the residual at one or several tokens of TEXT."""
    if samples > 1 and temperature == 0:
        raise NLAError(
            f"--samples {samples} at temperature 0 would give {samples} identical texts. Add "
            "--temperature 1."
        )
    with spinner("loading"):
        from ..core.sampling import Sampling

        target_model, nla = load(
            av, ar, target, dtype, device_map, remote=remote, pair=model,
            texts=options.engine_of(engine, vllm, url),
        )  # fmt: skip
        block = _block(nla, layer, insist=insist)
        (span,) = nla.positions(target_model, text)
        wanted = tokens.positions(position, len(span.ids))
    with spinner("explaining"):
        residual = tokens.residuals(target_model, nla, text, block, span.slice, remote=remote)
        thoughts = nla.explain(
            residual[wanted],
            tokens=[span.tokens[i] for i in wanted],
            positions=wanted,
            samples=samples,
            sampling=Sampling(
                temperature, max_new_tokens=max_new_tokens, seed=seed, upto=options.upto_of(upto)
            ),
            layer=layer,
            claims="ignore" if insist else "check",
        )
        nla.resolve()
    if as_json:
        print_json({"text": text, "layer": block, **thoughts.to_dict()})
    else:
        out.print(explanation_table(thoughts))


@command()
def read(
    text: options.Text,
    html: Annotated[
        Path | None,
        Option(metavar="FILE", help="Write the explanations as one self-contained HTML page."),
    ] = None,
    browser: Annotated[
        bool,
        Option(
            "--open",
            help=f"Open the page in a browser. Without --html: {PAGE} in the current folder.",
        ),
    ] = False,
    positions: Annotated[
        str,
        Option(
            "--position",
            metavar="WHICH",
            help="Which tokens: 'all', 'reply', an index (-1 is the last), or several (0,3,-1).",
        ),
    ] = "all",
    generate: Annotated[
        int | None,
        Option(min=1, metavar="N", help="First let the target generate up to N tokens."),
    ] = None,
    chat: Annotated[bool, Option("--chat", help="Treat TEXT as a user message in a chat.")] = False,
    model: options.Model = "tiny",
    av: options.Av = None,
    ar: options.Ar = None,
    target: options.Target = None,
    layer: options.Layer = None,
    insist: options.InsistLayer = False,
    temperature: options.Temperature = 0.0,
    seed: options.SamplingSeed = 0,
    max_new_tokens: options.MaxNewTokens = 200,
    upto: options.Upto = None,
    remote: options.Remote = False,
    engine: options.Engine = "fast",
    vllm: options.Vllm = None,
    url: options.Url = None,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """Explain the residual at every token of TEXT, as a table or an HTML page."""
    check_folder(html)
    page = html or (PAGE if browser else None)
    with spinner("loading"):
        from ..core.sampling import Sampling

        target_model, nla = load(
            av, ar, target, dtype, device_map, remote=remote, pair=model,
            texts=options.engine_of(engine, vllm, url),
        )  # fmt: skip
        _block(nla, layer, insist=insist)
    with spinner("reading"):
        found = nla.read(
            target_model,
            [{"role": "user", "content": text}] if chat else text,
            positions=positions if positions in ("all", "reply") else tokens.indices(positions),
            generate=generate,
            layer=layer,
            claims="ignore" if insist else "check",
            remote=remote,
            sampling=Sampling(
                temperature, max_new_tokens=max_new_tokens, seed=seed, upto=options.upto_of(upto)
            ),
        )
        if page is not None:
            found.to_html(page)
    if as_json:
        about = {"target": found.target, "verbalizer": found.verbalizer, "layer": found.layer}
        print_json({**about, "tokens": list(map(asdict, found))})
    elif page is not None:
        said = f"{len(found.positions)} of {len(found)} tokens explained: {page}"
        out.print(Text(said), soft_wrap=True)
    else:
        out.print(reading_table(found))
    if browser and page is not None:
        open_page(page)


def _block(nla: NLA, layer: int | None, *, insist: bool) -> int:
    """Return the number of the block to explain.

    Raises:
        NLAError: It is another one than the verbalizer was trained on, without --insist.
    """
    told = nla.layers
    if layer is not None and layer not in told and not insist:
        raise NLAError(
            f"--layer {layer}: the verbalizer was trained on layer {', '.join(map(str, told))}. "
            f"Remove --layer, or add --insist to explain layer {layer} anyway."
        )
    return nla.checkpoint.layer if layer is None else layer
