"""Train checkpoints and measure them: ``nnsight-nla train av|ar | evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.text import Text
from typer import Argument, Option

from ..errors import NLAError
from . import options
from .app import command, err, load_nla, load_target, print_json, spinner
from .app import out as console
from .grounded_table import grounded_table
from .tables import new_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from ..evaluation.grounding.judge import Judge
    from ..nla import NLA


@command()
def train(
    role: Annotated[
        Literal["av", "ar"],
        Argument(metavar="av|ar", help="What to train: av, a verbalizer, or ar, a reconstructor."),
    ],
    rows: options.LabelledRows,
    base: Annotated[
        str, Option(metavar="MODEL", help="The model to start from: a folder or a Hub id.")
    ],
    out: Annotated[Path, Option(metavar="FOLDER", help="The folder for the new checkpoint.")],
    steps: Annotated[int, Option(min=1, metavar="N", help="Optimizer steps.")] = 1000,
    batch_size: Annotated[
        int, Option(min=1, metavar="N", help="Rows per forward pass, on each device.")
    ] = 64,
    accumulation: Annotated[int, Option(min=1, metavar="N", help="Forward passes per step.")] = 1,
    learning_rate: Annotated[
        float, Option(min=0.0, metavar="X", help="The peak learning rate.")
    ] = 3e-5,
    warmup: Annotated[int, Option(min=0, metavar="N", help="Steps of linear warm-up.")] = 50,
    lora: Annotated[
        int | None,
        Option(min=1, metavar="N", help="Train LoRA adapters of rank N. Default: all weights."),
    ] = None,
    lora_alpha: Annotated[int, Option(min=1, metavar="N", help="LoRA's alpha.")] = 16,
    rslora: Annotated[
        bool, Option(help="Divide alpha by the square root of the rank, not by the rank.")
    ] = True,
    bf16: Annotated[
        bool | None, Option(help="Compute in bfloat16. Default: on if the GPU supports it.")
    ] = None,
    dtype: Annotated[
        str | None, Option(metavar="DTYPE", help="The dtype to load the weights in.")
    ] = None,
    save_dtype: Annotated[
        str | None,
        Option(
            metavar="DTYPE",
            help="The dtype to save in. Default: float32 for adapters, otherwise that of --base.",
        ),
    ] = None,
    attention: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="The implementation of attention: sdpa, eager, ... as in transformers.",
        ),
    ] = None,
    recompute: Annotated[
        bool, Option("--gradient-checkpointing", help="Use less memory, but run slower.")
    ] = False,
    seed: Annotated[
        int,
        Option(metavar="N", help="The seed for the row order and the adapters' initial weights."),
    ] = 0,
    layer: Annotated[
        int | None,
        Option(min=0, metavar="N", help="The layer of the vectors, if ROWS has no sidecar."),
    ] = None,
    base_name: Annotated[
        str | None,
        Option(metavar="NAME", help="The name of --base in the sidecar of ROWS, if it differs."),
    ] = None,
    held_out: options.HeldOut = 0.05,
    every: Annotated[
        int,
        Option(min=1, metavar="N", help="Measure, and save the state, every N steps."),
    ] = 100,
    measured: Annotated[
        int, Option(min=0, metavar="N", help="The number of held-out rows to measure on.")
    ] = 64,
    ar: Annotated[
        str | None,
        Option(metavar="AR", help="A reconstructor for measuring the verbalizer's FVE."),
    ] = None,
    grounded: Annotated[
        bool | None,
        Option(
            "--grounded/--no-grounded",
            help="Also compare the explanations with the texts that the vectors come from. "
            "Default: on if ROWS has these texts.",
        ),
    ] = None,
    best: Annotated[
        str | None,
        Option(
            metavar="FIGURE",
            help="Keep the step with the best value of this figure: loss, extraction, cosine, fve, "
            "grounded_source, ... Default: keep the last step.",
        ),
    ] = None,
    max_new_tokens: options.MaxNewTokens = 200,
    tensorboard: Annotated[
        Path | None, Option(metavar="FOLDER", help="Write TensorBoard logs to this folder.")
    ] = None,
    keep: Annotated[
        bool,
        Option(
            "--keep-state",
            help="Keep the training state in OUT.training, to continue later with more --steps.",
        ),
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Train a verbalizer or a reconstructor on labelled rows. Run it again to resume.

    To train for longer, resume with more --steps; to end early, resume with fewer. The
    stage after it is nnsight-nla train rl.
    """
    if role == "ar" and ar is not None:
        raise NLAError(
            "--ar is for measuring a verbalizer, but this trains a reconstructor. Remove --ar."
        )
    _check_measured(best, grounded, measured, held_out)
    with spinner("reading the rows"):
        from ..training import Lora, Settings, Watching
        from ..training import train as run
        from ..training.trainer import has_bfloat16
        from ..training.work_folder import is_main_process

        narrow = has_bfloat16() if bf16 is None else bf16
    adapters = None
    if lora is not None:
        adapters = Lora(lora, lora_alpha, "rslora" if rslora else "lora")
    trained = run(
        role,
        rows,
        base=base,
        out=out,
        settings=Settings(
            steps=steps,
            batch_size=batch_size,
            accumulation=accumulation,
            learning_rate=learning_rate,
            warmup=warmup,
            precision="bfloat16" if narrow else "float32",
            lora=adapters,
            activations="recompute" if recompute else "keep",
            seed=seed,
        ),
        watching=Watching(
            every=every,
            rows=measured,
            ar=ar,
            max_new_tokens=max_new_tokens,
            tensorboard=tensorboard,
            keep=keep,
            best=best,
            grounded=grounded,
        ),
        layer=layer,
        base_name=base_name,
        held_out=held_out,
        dtype=dtype,
        save_dtype=save_dtype,
        attention=attention,
        report=lambda line: err.print(Text(line)),
    )
    if not is_main_process():
        return
    if as_json:
        print_json({"folder": str(trained.folder), "log": trained.log})
    else:
        call = f"NLA('{out}')" if role == "av" else f"NLA(av, ar='{out}')"
        console.print(f"{trained.folder}: load it with {call}.", highlight=False)


def _check_measured(
    best: str | None, grounded: bool | None, measured: int, held_out: float
) -> None:
    """Raise if a flag needs figures of held-out rows, and none are measured."""
    flags = {f"--best {best}": best is not None, "--grounded": grounded is True}
    asked = next((flag for flag, given in flags.items() if given), None)
    if asked is None or (measured and held_out):
        return
    none, some = ("--held-out 0", "0.05") if measured else ("--measured 0", "64")
    raise NLAError(
        f"{asked} needs figures of held-out rows, and {none} measures none. Measure some, as in "
        f"{none.removesuffix('0')}{some}, or remove {asked.partition(' ')[0]}."
    )


@command()
def evaluate(
    av: options.AvArgument,
    rows: options.LabelledRows,
    ar: options.Ar = None,
    against: Annotated[
        str | None,
        Option(metavar="AV", help="Another verbalizer to evaluate on the same rows."),
    ] = None,
    held_out: options.HeldOut = 0.05,
    limit: Annotated[int, Option(min=2, metavar="N", help="Measure at most N rows.")] = 200,
    max_new_tokens: options.MaxNewTokens = 200,
    seed: Annotated[int, Option(metavar="N", help="The seed of the controls.")] = 0,
    against_text: Annotated[
        bool,
        Option(
            "--grounded",
            help="Also measure whether the explanations are true of the source texts.",
        ),
    ] = False,
    judge: Annotated[
        str | None,
        Option(
            metavar="URL|MODEL",
            help="With --grounded, also ask a model: one behind an OpenAI-compatible server, such "
            "as http://127.0.0.1:8000/v1 (its key is read from NNSIGHT_NLA_JUDGE_KEY), or a chat "
            "model on this machine, by folder or Hub id.",
        ),
    ] = None,
    judge_model: Annotated[
        str | None, Option(metavar="NAME", help="The judge's name on that server.")
    ] = None,
    insist: options.Insist = False,
    engine: options.Engine = "fast",
    vllm: options.Vllm = None,
    url: options.Url = None,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """Evaluate a verbalizer on held-out rows, and compare it with three controls.

    The controls are no vector, random vectors, and the vectors of other rows. --grounded also
    compares the explanations with the texts that the vectors come from.
    """
    asked = _judge(judge, judge_model, dtype, device_map) if judge or judge_model else None
    if asked is not None and not against_text:
        raise NLAError("--judge answers the questions of --grounded. Add --grounded.")
    if url is not None and against is not None:
        raise NLAError("--against with --url: a server runs one verbalizer. Leave one out.")
    with spinner("measuring"):
        from ..core.sampling import Sampling
        from ..training.measuring import measure

        texts = options.engine_of(engine, vllm, url)
        pairs: dict[str, NLA] = {}
        for name in filter(None, (av, against)):
            pairs[name] = load_nla(name, ar, dtype, device_map, texts=texts)
            pairs[name].sampling = Sampling(max_new_tokens=max_new_tokens)
        claims = "ignore" if insist else "check"
        figures = measure(
            rows, pairs, held_out=held_out, limit=limit, seed=seed, claims=claims,
            against_text=against_text, judge=asked,
        )  # fmt: skip
    if as_json:
        print_json({"rows": str(rows), "checkpoints": figures})
    else:
        console.print(_table(figures, str(rows)))
        if against_text:
            console.print(grounded_table({n: each["grounded"] for n, each in figures.items()}))


def _judge(where: str | None, model: str | None, dtype: str, device_map: str | None) -> Judge:
    """Return a judge; a server's says what its answers take before it asks for them."""
    if where is not None and model is None and not where.startswith(("http://", "https://")):
        from ..evaluation.grounding.local_judge import LocalJudge

        return LocalJudge(load_target(where, dtype, device_map))
    if where is None or model is None:
        raise NLAError("A judge behind a server needs --judge URL and --judge-model NAME.")
    from ..evaluation.grounding.endpoint_judge import EndpointJudge
    from ..evaluation.grounding.judge import estimate

    endpoint = EndpointJudge(where, model)

    def asked(prompts: Sequence[str]) -> Sequence[str]:
        left = endpoint.unanswered(prompts)
        err.print(Text(f"{model}: {estimate(left, endpoint.max_tokens)}"))
        return endpoint(prompts)

    return asked


def _table(figures: dict[str, dict[str, Any]], rows: str) -> Table:
    """Format figures: one row per figure, one column per checkpoint."""
    from ..core.baseline import Baseline

    columns = list(figures.values())
    over = {Baseline(**each["baseline"]).in_words() for each in columns if each["baseline"]}
    table = new_table(
        "figure",
        *figures,
        title=f"{columns[0]['rows']} held-out rows of {rows}",
        caption="\n".join(f"FVE ({each})" for each in sorted(over)) or "no FVE without --ar",
    )
    for name, what in (
        ("extraction", "replies that are an explanation"),
        ("truncated", "replies that were cut off"),
        ("retrieval", "texts nearest to their own vector"),
    ):
        table.add_row(what, *(_shown(each[name]) for each in columns))
    for group, what in (
        ("fve", "FVE"), ("cosine", "cosine"), ("says", "the label's likelihood, nats a token"),
    ):  # fmt: skip
        for name in _SOURCES:
            found = [(each[group] or {}).get(name) for each in columns]
            if any(value is not None for value in found):
                table.add_row(f"{what}: {_SOURCES[name]}", *map(_shown, found))
    return table


_SOURCES = {
    "explanation": "its vector",
    "label": "the label itself",
    "null": "no vector",
    "random": "a random vector",
    "shuffled": "another row's vector",
}


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:z.3f}"
