"""Ask an activation oracle about a text: ``nnsight-nla ask``."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from ..errors import NLAError
from . import options, tokens
from .app import command, load_oracle, out, print_json, spinner
from .tables import answer_table


@command()
def ask(
    text: options.Text,
    question: Annotated[
        list[str],
        Option(metavar="TEXT", help="The question. Repeat the option to ask several."),
    ],
    choices: options.Choices = None,
    position: options.Position = "-1",
    slots: Annotated[
        int,
        Option(
            min=1,
            metavar="N",
            help="Ask about N adjacent tokens at once: each token and the N-1 before it.",
        ),
    ] = 1,
    av: Annotated[
        str | None,
        Option(
            metavar="AV",
            help="The oracle: a folder or a Hub id. Default: the bundled one, for a small model of "
            "a made-up world.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        Option(
            metavar="MODEL",
            help="The target: a folder or a Hub id. Default: the one that the oracle names.",
        ),
    ] = None,
    layer: Annotated[
        int | None,
        Option(
            min=0,
            metavar="N",
            help="Ask about the output of block N, counted from 0, of those that the oracle was "
            "trained on. Default: the first of them.",
        ),
    ] = None,
    max_new_tokens: options.MaxNewTokens = 200,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """Ask an activation oracle about the residual at one or several tokens of TEXT.

    Next to each answer is what the oracle answers without the residual, with a random vector in its
    place, and with that of another token: an answer that does not change was not read from it.
    """
    words = options.words_of(choices)
    with spinner("loading"):
        from ..core.sampling import Sampling

        model, oracle = load_oracle(av, target, dtype, device_map)
        block = options.block_of(oracle, layer)
        (span,) = oracle.positions(model, text)
        wanted = tokens.positions(position, len(span.ids))
        _check_slots(slots, wanted)
    with spinner("asking"):
        residual = tokens.residuals(model, oracle, text, block, span.slice, remote=False)
        asked = [(each, place) for each in question for place in wanted]
        answers = oracle.ask(
            [residual[place + 1 - slots : place + 1] for _, place in asked],
            [each for each, _ in asked],
            choices=words,
            layer=block,
            tokens=[span.tokens[place] for _, place in asked],
            positions=[place for _, place in asked],
            sampling=Sampling(max_new_tokens=max_new_tokens),
        )
        oracle.resolve()
    if as_json:
        print_json({"text": text, "layer": block, **answers.to_dict()})
    else:
        out.print(answer_table(answers))


def _check_slots(slots: int, positions: list[int]) -> None:
    """Check that each position has enough tokens before it.

    Raises:
        NLAError: One has not.
    """
    first = min(positions)
    if first + 1 < slots:
        raise NLAError(
            f"--slots {slots} at position {first}: {first + 1} of the text's tokens end there. "
            f"Type --slots {first + 1}, or a --position from {slots - 1} on."
        )
