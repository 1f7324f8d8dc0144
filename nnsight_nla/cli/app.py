"""The application, its consoles, and what all commands share: loading, JSON, flags in messages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from typer import Option
from typer.main import get_group

from .._version import __version__
from ..errors import VerbalizationError
from .help import CommandWithExamples, GroupWithExamples, paragraphs

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel

    from ..nla import NLA
    from ..verbalize.verbalizer import Verbalizer

Function = TypeVar("Function", bound=Callable[..., Any])

app = typer.Typer(
    cls=GroupWithExamples,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Natural Language Autoencoders: explain the activations of a language model in words, "
    "turn words back into activations, and train models for both.",
)
out = Console()
err = Console(stderr=True)

# The options that come before the command. (Not in Typer's context: it has no public way to it.)
_OF_ALL: dict[str, Any] = {}
# Calls in messages that a flag replaces.
_CALLS = {
    "Settings(precision='float32')": "--no-bf16",
    "Watching(keep=True)": "--keep-state",
    "RLWatching(rows=64)": "--measured 64",
    "RLSettings(reconstructor='freeze')": "--freeze-ar",
    "RLSettings(reconstructor='train')": "without --freeze-ar",
    "nla.explain(vectors)": "nnsight-nla explain TEXT",
    "nla.ask(vectors, 'What is the text about?')": (
        "nnsight-nla ask TEXT --question 'What is the text about?'"
    ),
    "NLA.on(model, av='the adapter')": "--av ADAPTER",
    "trust_remote_code=True": "nnsight-nla --trust-remote-code COMMAND",
}
_DATE = re.compile(r"NLA\(\.\.\., date='([^']*)'\)")
_PYTHON = re.compile(
    r"[\w.]+\([^()]*\)|\b(?P<name>[a-z_]+)=(?P<value>True|False|(?=[\w'\"\[/]|\.[\w/.]))?"
)


def command(name: str | None = None) -> Callable[[Function], Function]:
    """Return the decorator that makes a function a command, with its examples in the help.

    Args:
        name: Its name, which may be two words; that of the function unless given.
    """

    def register(function: Function) -> Function:
        text = paragraphs(function.__doc__ or "")
        return app.command(name, cls=CommandWithExamples, help=text)(function)

    return register


@app.callback(invoke_without_command=True)
def version(
    version: Annotated[bool, Option("--version", help="Print the version and exit.")] = False,
    trust: Annotated[
        bool,
        Option(
            "--trust-remote-code",
            help="Allow model repositories to run their own code. Default: never.",
        ),
    ] = False,
    date: Annotated[
        str | None,
        Option(
            metavar="DATE",
            help="The date in the verbalizer's prompt, such as 2026-11-26, if its chat template "
            "prints one. Default: the checkpoint's date, otherwise today.",
        ),
    ] = None,
) -> None:
    """Print the version; remember what applies to all commands."""
    _OF_ALL.update(trust_remote_code=trust, date=date)
    if version:
        out.print(f"nnsight-nla {__version__}", highlight=False)
        raise typer.Exit


def load(
    av: str | None, ar: str | None, target: str | None, dtype: str, device_map: str | None, *,
    remote: bool = False, pair: str = "tiny", texts: Mapping[str, Any] | None = None,
) -> tuple[TransformersModel, NLA]:  # fmt: skip
    """Load the target and the NLA; without `av`, the pair of that name, or a server's verbalizer.

    Args:
        av: The verbalizer.
        ar: The reconstructor.
        target: The target; by default the one that the verbalizer names.
        dtype: The dtype of all three.
        device_map: Their device.
        remote: Whether they run on the configured NDIF host.
        pair: The name of the pair.
        texts: What generates the texts; see `options.engine_of`.
    """
    texts = texts or {}
    own = av or texts.get("url")
    if own is not None and pair != "tiny":
        given = "--av" if av else "--url"
        raise VerbalizationError(
            f"--model {pair} has its own verbalizer. Remove {given} or --model."
        )
    if own is None:
        if texts:
            raise VerbalizationError(
                f"--engine {texts['engine']} needs the verbalizer's name, --av PATH_OR_ID, or a "
                f"server, --url http://... The pair {pair} is without."
            )
        return _load_pair(pair, ar, target, dtype, device_map, remote=remote)
    nla = load_nla(av, ar, dtype, device_map, remote=remote, texts=texts)
    base = target or nla.checkpoint.base_model
    if base is None:
        raise VerbalizationError(f"{own} does not name its target; add --target PATH_OR_ID.")
    return load_target(base, dtype, device_map), nla


def _load_pair(
    pair: str, ar: str | None, target: str | None, dtype: str, device_map: str | None, *,
    remote: bool,
) -> tuple[TransformersModel, NLA]:  # fmt: skip
    from .. import pairs

    on_hub = pair == "qwen3-8b"
    if remote and not on_hub:
        raise VerbalizationError(
            "--remote needs the verbalizer's name on the host: --av ID --target ID. The pair "
            f"{pair} runs on this machine only: leave out --remote to use it."
        )
    for option, given, how in (("target", target, "for"), ("ar", ar, "with")):
        if given is not None and not (option == "ar" and on_hub):
            raise VerbalizationError(
                f"--{option} {given} needs the verbalizer that was trained {how} it: "
                "--av PATH_OR_ID."
            )
    load = _options(dtype, device_map)
    if dtype == "auto":
        load.pop("dtype")  # The pair's own.
    if not on_hub:
        load.pop("trust_remote_code", None)  # It has no code of its own.
    return pairs.load(pair, ar=ar, remote=remote, **load)


def load_oracle(
    av: str | None, target: str | None, dtype: str, device_map: str | None
) -> tuple[TransformersModel, NLA]:
    """Load an activation oracle and its target; an adapter runs on the target's own weights."""
    from .. import tiny
    from ..checkpoint.checkpoint import Checkpoint
    from ..models.adapter import is_adapter
    from ..nla import NLA

    if av is None:
        model, _ = _load_pair("tiny", None, target, dtype, device_map, remote=False)
        return model, NLA.on(model, av=tiny.paths()["oracle"])
    if not is_adapter(av):
        return load(av, None, target, dtype, device_map)
    base = target or Checkpoint.load(av).base_model
    if base is None:
        raise VerbalizationError(f"{av} does not name its target; add --target PATH_OR_ID.")
    model = load_target(base, dtype, device_map)
    return model, NLA.on(model, av=av, date=_OF_ALL.get("date"))


def load_nla(
    av: str | None, ar: str | None, dtype: str, device_map: str | None, *, remote: bool = False,
    texts: Mapping[str, Any] | None = None,
) -> NLA:  # fmt: skip
    """Load an NLA without its target; see `load`."""
    from ..nla import NLA

    given = {**_options(dtype, device_map), **(texts or {})}
    return NLA(av, ar=ar, remote=remote, date=_OF_ALL.get("date"), **given)


def open_av(av: str, dtype: str) -> tuple[Verbalizer, dict[str, Any]]:
    """Read and check a verbalizer, without its weights; return it and the options of its load."""
    from ..models.memory import Memory
    from ..models.open import OpenOptions, open_verbalizer
    from ..verbalize.verbalizer import Verbalizer

    load = _options(dtype, None)
    where = OpenOptions(None, remote=False, memory=Memory(), load=load)
    opened = open_verbalizer(av, where, checkpoint=None, peft=None, date=_OF_ALL.get("date"))
    return Verbalizer(opened.runtime, opened.checkpoint, opened.prompt), load


def load_target(name: str, dtype: str, device_map: str | None) -> TransformersModel:
    """Load a target by folder or Hub id; its weights load when it first runs."""
    from ..models.loading import load_model

    return load_model(name, None, None, _options(dtype, device_map))


def _options(dtype: str, device_map: str | None) -> dict[str, Any]:
    options = {"dtype": dtype, **({"device_map": device_map} if device_map else {})}
    return {**options, "trust_remote_code": True} if _OF_ALL.get("trust_remote_code") else options


def load_options(dtype: str, device_map: str | None, *, remote: bool) -> dict[str, Any]:
    """Return the options of `NLA` that differ from its defaults, to write them as code."""
    options = _options(dtype, device_map)
    if dtype == "auto":
        del options["dtype"]
    date = _OF_ALL.get("date")
    more = {"remote": True} if remote else {}
    return {**options, **more, **({} if date is None else {"date": date})}


def print_json(value: object) -> None:
    """Print `value` as the one document that ``--json`` promises."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2))  # noqa: T201


def spinner(what: str) -> AbstractContextManager[object]:
    """Show a spinner on standard error if that is a terminal; silence transformers' own bars."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return err.status(what) if err.is_terminal else nullcontext()


def command_of(words: Iterable[str]) -> str:
    """Return the command in a command line; an empty string if there is none."""
    commands, listed = get_group(app).commands, list(words)
    pairs = [" ".join(pair) for pair in pairwise(listed)]
    return next((each for each in (*pairs, *listed) if each in commands), "")


def in_flags(message: str, command: str) -> str:
    """Name flags of `command` where a message of the library names Python arguments.

    ``held_out=0.2`` becomes ``--held-out 0.2``; calls such as ``NLA(..., dtype='float32')`` stay.
    """
    group = get_group(app)
    params = [*group.params, *(group.commands[command].params if command in group.commands else [])]
    options = {option.name: option for option in params}

    def flag(match: re.Match[str]) -> str:
        option = options.get(match["name"])
        if option is None:
            return _CALLS.get(match[0], match[0])
        if match["value"] == "False":
            return option.secondary_opts[0] if option.secondary_opts else match[0]
        return option.opts[0] + (" " if match["value"] == "" else "")

    message = _DATE.sub(r"nnsight-nla --date \1 COMMAND", message)
    if "insist" in options:
        message = message.replace("claims='ignore'", options["insist"].opts[0])
    return _PYTHON.sub(flag, message)
