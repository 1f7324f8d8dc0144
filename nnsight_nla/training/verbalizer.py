"""The warm start of a verbalizer: a language model learns to say what a vector holds.

The vector is written at the marker by `injection.write`, the function that inference uses, from a
hook on the module whose output it is written into. The loss is taken on the response and its end
of sequence; the prompt is the same in every row, so there is nothing to learn in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .. import hosts
from ..checkpoint import Checkpoint
from ..injection import Injection, write
from .rows import IGNORED, TrainingError, verbalizer_rows
from .settings import Lora, Settings
from .trainer import Report, fit


class Writing:
    """Writes the vectors of the batch at hand; a forward hook on the injection site's module.

    It stays for the whole training rather than for one forward pass: with gradient checkpointing
    a block is computed again in the backward pass, and has to be written to again.
    """

    vectors: Float[Tensor, "batch d_model"] | None = None
    """One vector a row; ``None`` writes nothing."""

    def __init__(self, position: int, injection: Injection) -> None:
        self.position, self.injection = position, injection

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> Any:  # noqa: ARG002
        """Return the module's output with the vectors written into it."""
        if self.vectors is None:
            return output
        # Blocks return their residual alone, or in some families first in a tuple.
        hidden = output[0] if isinstance(output, tuple) else output
        written = write(hidden, self.vectors, self.position, self.injection)
        return (written, *output[1:]) if isinstance(output, tuple) else written


@contextmanager
def writing(model: nn.Module, position: int, injection: Injection) -> Iterator[Writing]:
    """Write into `model` at its injection site for as long as the block lasts.

    Args:
        model: A causal language model.
        position: The marker's position.
        injection: Site and operation.

    Yields:
        The hook; set its `vectors` before each forward pass.
    """
    layer = injection.layer
    # hosts takes plain modules as well as envoys.
    site = hosts.embedding(model) if layer is None else hosts.block(model, layer)  # type: ignore[arg-type]
    hook = Writing(position, injection)
    handle = site.register_forward_hook(hook)
    try:
        yield hook
    finally:
        handle.remove()


def train_verbalizer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    checkpoint: Checkpoint,
    settings: Settings = Settings(),  # noqa: B008  (frozen)
    *,
    report: Report | None = None,
) -> Any:
    """Fine-tune `model` into a verbalizer.

    Args:
        model: The causal language model to start from, usually the target itself; trained in place.
        tokenizer: Its tokenizer, with a chat template.
        rows: Training rows (`Row`).
        checkpoint: Prompt, marker and injection, as the verbalizer will be served with.
        settings: Steps, rates, batches; with `Settings.lora` only adapters are trained.
        report: Called with a line of progress.

    Returns:
        The model in evaluation mode; wrapped by PEFT when `Settings.lora` is given.

    Raises:
        TrainingError: Rows, model and checkpoint do not fit each other.
    """
    width = hosts.width(model)
    if width != checkpoint.d_model:
        raise TrainingError(
            f"{hosts.describe(model)} has d_model {width}, the checkpoint says "
            f"{checkpoint.d_model}. A verbalizer is trained from a model as wide as its target."
        )
    tokenized, prompt = verbalizer_rows(rows, tokenizer, checkpoint)
    with writing(model, prompt.marker_position, checkpoint.injection) as hook:
        # The adapters wrap linear layers inside the blocks; the hooked block stays the same module.
        trained = (
            model if settings.lora is None else _with_adapters(model, settings.lora, settings.seed)
        )

        def loss_of(wrapped: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            hook.vectors = batch["vectors"]
            return response_loss(wrapped, batch, len(prompt.ids))

        fit(trained, tokenized, loss_of, settings, report)
    return trained


def response_loss(model: nn.Module, batch: Mapping[str, Tensor], start: int) -> Tensor:
    """The mean next-token loss on the response, its end of sequence included.

    Args:
        model: The verbalizer, with `writing` in force.
        batch: From `collate`.
        start: The first position of the response.
    """
    logits = response_logits(model, batch, start)
    labels = batch["labels"][:, start:]
    return cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)


def response_logits(
    model: nn.Module, batch: Mapping[str, Tensor], start: int
) -> Float[Tensor, "batch response vocabulary"]:
    """The logits that predict the tokens from position `start` on, and no others."""
    ids = batch["input_ids"]
    # Logits over a large vocabulary are most of a small batch's memory: only the response's are
    # made, and the one before it, which predicts its first token.
    kept = ids.shape[1] - start + 1
    return model(input_ids=ids, logits_to_keep=kept, use_cache=False).logits[:, :-1]


def _with_adapters(model: Any, lora: Lora, seed: int) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise TrainingError("Settings(lora=...) needs PEFT: pip install peft.") from error
    import torch

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=True,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)
