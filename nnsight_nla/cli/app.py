"""What every command has: the application, where it prints, how it loads the models."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Annotated, Any

import typer
from rich.console import Console

from ..errors import VerbalizationError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Natural Language Autoencoders as ordinary values of an nnsight experiment.",
)
out = Console()
err = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]


def load(
    av: str | None,
    ar: str | None,
    target: str | None,
    dtype: str,
    device_map: str | None,
    *,
    remote: bool = False,
    reads: bool = True,
) -> Any:
    """The target and the NLA: the embedded pair, unless `av` says another.

    Args:
        av: The verbalizer, and so on as the options of these names.
        ar: The reconstructor.
        target: The target.
        dtype: Of all.
        device_map: Of all.
        remote: Verbalizer and reconstructor are on the host.
        reads: Whether the target is needed; else it is ``None`` beside an `av`.
    """
    from .. import tiny

    if av is None and remote:
        raise VerbalizationError(
            "--remote needs the verbalizer's name on the host: --av ID --target ID."
        )
    if av is None:
        for option, given, how in (("target", target, "for"), ("ar", ar, "with")):
            if given is not None:
                raise VerbalizationError(
                    f"--{option} {given} needs the verbalizer that was trained {how} it: "
                    "--av PATH_OR_ID."
                )
        return tiny.load()
    from ..nla import NLA

    options = {"dtype": dtype, **({"device_map": device_map} if device_map else {})}
    nla = NLA(av, ar=ar, remote=remote, **options)
    if not reads:
        return None, nla
    base = target or nla.checkpoint.base_model
    if base is None:
        raise VerbalizationError(f"{av} does not name its target; add --target PATH_OR_ID.")
    return load_target(base, dtype, device_map), nla


def load_target(name: str, dtype: str, device_map: str | None) -> Any:
    """A target by folder or Hub id; its weights load when it first runs."""
    from nnsight import TransformersModel

    options = {"dtype": dtype, **({"device_map": device_map} if device_map else {})}
    try:
        return TransformersModel(name, task="text-generation", **options)
    except OSError as error:
        raise VerbalizationError(
            f"The target {name!r} could not be read: {str(error).splitlines()[0]} "
            "Give a local folder with --target."
        ) from error


def print_json(value: Any) -> None:
    """Print `value` as the one document that ``--json`` promises."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2))  # noqa: T201


def working(what: str) -> Any:
    """A spinner on standard error, where a person watches; the host's own bars are switched off."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return err.status(what) if err.is_terminal else nullcontext()
