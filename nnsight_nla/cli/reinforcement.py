"""Train a warm start by reinforcement learning: ``nnsight-nla train rl``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from rich.text import Text
from typer import Argument, Option

from ..errors import NLAError
from . import options
from .app import command, err, print_json, spinner
from .app import out as console
from .functions import import_function, weighted

if TYPE_CHECKING:
    from ..training import Reward


@command("train rl")
def train_rl(
    rows: Annotated[
        Path, Argument(metavar="ROWS", help="Vectors: a Parquet file with its sidecar.")
    ],
    av: Annotated[
        str, Option(metavar="AV", help="The verbalizer to start from: a folder or a Hub id.")
    ],
    ar: Annotated[
        str, Option(metavar="AR", help="The reconstructor to start from: a folder or a Hub id.")
    ],
    out: Annotated[Path, Option(metavar="FOLDER", help="The folder for the new checkpoints.")],
    steps: Annotated[int, Option(min=1, metavar="N", help="Updates of the verbalizer.")] = 400,
    prompts: Annotated[int, Option(min=1, metavar="N", help="Vectors per step.")] = 256,
    draws: Annotated[int, Option(min=1, metavar="N", help="Texts per vector.")] = 8,
    max_new_tokens: options.MaxNewTokens = 256,
    temperature: Annotated[
        float, Option(min=0.0, metavar="X", help="The temperature of the draws.")
    ] = 1.0,
    av_rate: Annotated[
        float, Option(min=0.0, metavar="X", help="The verbalizer's highest learning rate.")
    ] = 1e-4,
    ar_rate: Annotated[
        float, Option(min=0.0, metavar="X", help="The reconstructor's highest learning rate.")
    ] = 8e-5,
    warmup: Annotated[int, Option(min=0, metavar="N", help="Steps of linear warm-up.")] = 0,
    final_rate: Annotated[
        float,
        Option(min=0.0, metavar="X", help="The rates at the end, as a share of the highest."),
    ] = 1.0,
    kl: Annotated[
        float,
        Option(min=0.0, metavar="X", help="The weight of the KL divergence from the start."),
    ] = 0.01,
    freeze_ar: Annotated[
        bool, Option("--freeze-ar", help="Do not train the reconstructor along.")
    ] = False,
    reconstruction: Annotated[
        float,
        Option(min=0.0, metavar="X", help="The weight of the reconstruction in the reward."),
    ] = 1.0,
    reward: Annotated[
        list[str] | None,
        Option(
            metavar="FUNCTION=X",
            help="A reward of your own, module:function=weight; may be repeated. It gets texts "
            "and vectors, and returns a number for each text.",
        ),
    ] = None,
    length_margin: Annotated[
        int,
        Option(
            min=0, metavar="N", help="A text's length costs from N tokens below --max-new-tokens."
        ),
    ] = 64,
    length_penalty: Annotated[
        float, Option(min=0.0, metavar="X", help="What each of these tokens costs.")
    ] = 0.01,
    batch_size: Annotated[
        int, Option(min=1, metavar="N", help="Texts per forward pass, on each device.")
    ] = 32,
    lora: Annotated[
        int | None,
        Option(
            min=1,
            metavar="N",
            help="Train LoRA adapters of rank N on a verbalizer that is a whole model. One that is "
            "an adapter continues its own. Default: all weights.",
        ),
    ] = None,
    lora_alpha: Annotated[
        int, Option(min=1, metavar="N", help="The scale of the adapters (alpha).")
    ] = 16,
    rslora: Annotated[
        bool, Option(help="Divide the scale by the square root of the rank, not by the rank.")
    ] = True,
    bf16: Annotated[
        bool | None, Option(help="Compute in bfloat16. Default: if the GPU supports it.")
    ] = None,
    dtype: Annotated[
        str | None, Option(metavar="DTYPE", help="The dtype to load the weights in.")
    ] = None,
    save_dtype: Annotated[
        str | None,
        Option(
            metavar="DTYPE",
            help="The dtype to save in. Default: float32 for adapters, otherwise that of --av.",
        ),
    ] = None,
    engine: Annotated[
        str,
        Option(
            metavar="NAME",
            help="What draws the texts: fast, or vllm, which trains adapters only.",
        ),
    ] = "fast",
    vllm: Annotated[
        str | None,
        Option(
            metavar="TEXT",
            help="For --engine vllm: options of vLLM, as JSON. The training is on the same GPU, so "
            "leave it room.",
        ),
    ] = None,
    recompute: Annotated[
        bool, Option("--gradient-checkpointing", help="Use less memory, and take longer.")
    ] = False,
    seed: Annotated[
        int, Option(metavar="N", help="The seed of the draws and of the vectors' order.")
    ] = 0,
    held_out: options.HeldOut = 0.05,
    every: Annotated[
        int,
        Option(min=1, metavar="N", help="Measure, and save the state, every N steps."),
    ] = 20,
    measured: Annotated[
        int, Option(min=0, metavar="N", help="The number of held-out rows to measure.")
    ] = 64,
    stop: Annotated[
        list[str] | None,
        Option(
            metavar="FIGURE>X",
            help="Stop when a figure is above X (or FIGURE<X, below); may be repeated. Figures: "
            "extraction, length, kl, entropy, distinct, reward, and on held-out rows eval_fve, "
            "eval_grounded_next, ...",
        ),
    ] = None,
    best: Annotated[
        str | None,
        Option(
            metavar="FIGURE",
            help="Keep the step with the best value of this figure on held-out rows: fve, "
            "extraction, grounded_source, ... Default: keep the last step.",
        ),
    ] = None,
    grounded: Annotated[
        bool | None,
        Option(
            "--grounded/--no-grounded",
            help="Compare texts with those that the vectors were read in. Default: if ROWS has "
            "these.",
        ),
    ] = None,
    tensorboard: Annotated[
        Path | None, Option(metavar="FOLDER", help="The folder for TensorBoard's events.")
    ] = None,
    keep: Annotated[
        bool,
        Option(
            "--keep-state",
            help="Keep the state in OUT.training, so that more --steps can continue the training.",
        ),
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Train a verbalizer so that the reconstructor recovers the vector from its texts.

    The second stage, after the supervised warm start of train av and train ar. Run it again to
    resume.
    """
    own = dict(weighted(each, "--reward") for each in reward or [])
    functions = {name: import_function(name, "--reward") for name in own}
    with spinner("reading the rows"):
        from ..training import Lora, Reward, RLSettings, RLWatching, rl
        from ..training.trainer import has_bfloat16
        from ..training.work_folder import is_main_process

        narrow = has_bfloat16() if bf16 is None else bf16
    rewards: dict[str, Reward] = {
        name.partition(":")[2]: Reward(functions[name], weight) for name, weight in own.items()
    }
    if len(rewards) < len(own):
        raise NLAError(f"--reward: two functions have one name: {', '.join(own)}. Rename one.")
    adapters = None
    if lora is not None:
        adapters = Lora(lora, lora_alpha, "rslora" if rslora else "lora")
    made = rl(
        av,
        rows,
        ar=ar,
        out=out,
        settings=RLSettings(
            steps=steps,
            prompts=prompts,
            draws=draws,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            av_rate=av_rate,
            ar_rate=ar_rate,
            warmup=warmup,
            final_rate=final_rate,
            kl=kl,
            reconstruction=reconstruction,
            length_margin=length_margin,
            length_penalty=length_penalty,
            engine=cast("Any", engine),
            reconstructor="freeze" if freeze_ar else "train",
            batch_size=batch_size,
            precision="bfloat16" if narrow else "float32",
            lora=adapters,
            activations="recompute" if recompute else "keep",
            seed=seed,
        ),
        watching=RLWatching(
            every=every,
            rows=measured,
            stop=tuple(stop or ()),
            best=best,
            grounded=grounded,
            tensorboard=tensorboard,
            keep=keep,
        ),
        rewards=rewards,
        held_out=held_out,
        dtype=dtype,
        save_dtype=save_dtype,
        vllm=None if vllm is None else options.json_object("--vllm", vllm),
        report=lambda line: err.print(Text(line)),
    )
    if not is_main_process():
        return
    if as_json:
        print_json(
            {
                "folder": str(made.folder),
                "av": str(made.av),
                "ar": None if made.ar is None else str(made.ar),
                "stopped": made.stopped,
                "log": made.log,
            }
        )
    else:
        judged = ar if made.ar is None else f"{out}/ar"
        line = f"{out}: NLA('{out}/av', ar='{judged}') loads it."
        console.print(line, highlight=False, soft_wrap=True)
