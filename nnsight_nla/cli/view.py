"""``nnsight-nla view``: a page in the browser that explains what is clicked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from rich.text import Text
from typer import Argument, Option

from ..errors import NLAError
from . import options
from .app import command, err, load, load_nla, load_options, out, spinner
from .pages import open_address

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel


@command()
def view(
    text: Annotated[
        str | None, Argument(metavar="TEXT", help="A text to begin with. Others in the page.")
    ] = None,
    chat: Annotated[bool, Option("--chat", help="Treat TEXT as a user message in a chat.")] = False,
    model: options.Model = "tiny",
    av: Annotated[
        list[str] | None,
        Option(
            metavar="AV",
            help="The verbalizer: a folder or a Hub id. Repeat it, one for each layer, to read by "
            "depth. Default: the one of --model.",
        ),
    ] = None,
    ar: Annotated[
        list[str] | None,
        Option(
            metavar="AR",
            help="The reconstructor: a folder or a Hub id. With several --av, one for each, in "
            "their order.",
        ),
    ] = None,
    target: options.Target = None,
    layer: Annotated[
        list[int] | None,
        Option(
            min=0,
            metavar="N",
            help="A block that the verbalizer was trained on. Repeat it to read by depth. "
            "Default: the verbalizer's own.",
        ),
    ] = None,
    remote: options.Remote = False,
    engine: options.Engine = "fast",
    vllm: options.Vllm = None,
    url: options.Url = None,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    host: Annotated[
        str, Option(metavar="NAME", help="The address to listen on; 0.0.0.0 for other machines.")
    ] = "127.0.0.1",
    port: Annotated[
        int, Option(min=0, metavar="N", help="The port to listen on; 0 for any that is free.")
    ] = 8010,
    browser: options.Open = False,
) -> None:
    """Serve a page that explains the tokens that you click.

    The address that is printed has a random token: who knows it can read and run prompts. Ctrl-C
    stops the server.
    """
    from ..live.server import check_installed, serve
    from ..live.session import Session

    check_installed()
    avs, ars = av or [None], ar or []
    if ars and len(ars) != len(avs):
        raise NLAError(f"{len(ars)} --ar for {len(avs)} --av. Pass one for each, in their order.")
    if url is not None and len(avs) > 1:
        raise NLAError(f"{len(avs)} --av with --url: a server runs one verbalizer. Pass one --av.")
    with spinner("loading"):
        texts = options.engine_of(engine, vllm, url)
        pairs = [(each, ars[i] if ars else None) for i, each in enumerate(avs)]
        (first, its_ar), *others = pairs
        target_model, nla = load(
            first, its_ar, target, dtype, device_map, remote=remote, pair=model, texts=texts
        )
        nlas = [nla]
        for each, its_ar in others:
            nlas.append(load_nla(str(each), its_ar, dtype, device_map, remote=remote, texts=texts))
        if layer:
            nlas = [each.at_layer(block) for each in nlas for block in layer]
        given = {**load_options(dtype, device_map, remote=remote), **texts}
        setup = _setup(model, pairs, target_model, layer or [], given)
        session = Session(target_model, nlas, remote=remote, setup=setup)
        if text is not None:
            session.open([{"role": "user", "content": text}] if chat else text)

    def started(address: str) -> None:
        out.print(Text(address), soft_wrap=True)
        err.print(Text("Ctrl-C stops the server.", "dim"))
        if browser:
            open_address(address)

    try:
        serve(session, host=host, port=port, started=started)
    finally:
        session.close()


def _setup(
    pair: str,
    models: Sequence[tuple[str | None, str | None]],
    target: TransformersModel,
    layers: Sequence[int],
    options: Mapping[str, Any],
) -> str:
    """Return the lines of code that load what this command loaded, for a card's code."""
    from ..models.hosts import describe
    from ..verbalize.engine import ARGUMENTS

    def call(name: str, *first: object, without: tuple[str, ...] = (), **more: object) -> str:
        given = {**more, **{k: v for k, v in options.items() if k not in without}}
        named = [f"{k}={v!r}" for k, v in given.items() if v is not None]
        return f"{name}({', '.join([*map(repr, first), *named])})"

    (av, its_ar), *_ = models
    if av is None and "url" not in options:
        loaded = call("pairs.load", pair, ar=its_ar, without=("date", "trust_remote_code"))
        lines = ["from nnsight_nla import pairs", f"model, nla = {loaded}"]
        made = ["nla"]
    else:
        without, own = ("date", "remote", *ARGUMENTS), {"task": "text-generation"}
        loaded = call("TransformersModel", describe(target), without=without, **own)
        lines = [
            "from nnsight import TransformersModel",
            "from nnsight_nla import NLA",
            f"model = {loaded}",
        ]
        made = [call("NLA", *filter(None, [each]), ar=ar) for each, ar in models]
    if layers:
        made = [f"{each}.at_layer({block})" for each in made for block in layers]
    if made != ["nla"]:
        several = len(made) > 1
        lines.append(f"nlas = [{', '.join(made)}]" if several else f"nla = {made[0]}")
    return "\n".join(lines)
