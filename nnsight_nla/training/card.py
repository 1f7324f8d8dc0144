"""Write the model card of a checkpoint: the README.md with which a folder can be uploaded.

It says what the checkpoint is, how to load it, what it was trained on, what was measured on
held-out rows, and what its texts do not show. All of it comes from the sidecar::

    (folder / "README.md").write_text(model_card("my-av", entries), "utf-8")
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..checkpoint.checkpoint import QUESTION_SLOT
from ..checkpoint.identity import hub_id

CARD = "README.md"
"""The file of a model card."""
_TITLES = {
    "av": "activation verbalizer",
    "ar": "activation reconstructor",
    "several": "activation verbalizer",
    "oracle": "activation oracle",
}
_WHAT = {
    "av": (
        "It explains a residual-stream vector of {target} in words. The vector is the output of "
        "block {layer} (counted from 0, `hidden_states[{next}]`, {width} entries), and is written "
        "into the prompt at one marker token. The text is between `<explanation>` tags."
    ),
    "several": (
        "It explains {vectors} residual-stream vectors of {target} together, such as both ends of "
        "a difference. They are outputs of block {layer} (counted from 0, `hidden_states[{next}]`, "
        "{width} entries), and each is written into the prompt at a marker token of its own. The "
        "text is between `<explanation>` tags."
    ),
    "oracle": (
        "It answers questions about residual-stream vectors of {target}. The vectors are the "
        "output of block {layer} (counted from 0, `hidden_states[{next}]`, {width} entries) or of "
        "another block that it is told, and are written into the prompt, one at each slot."
    ),
    "ar": (
        "It turns an explanation back into a residual-stream vector of {target}: the output of "
        "block {layer} (counted from 0, `hidden_states[{next}]`, {width} entries). Only the "
        "direction of the vector is meaningful. It says how much of a vector a text carries."
    ),
}
_USE = {
    "av": 'nla = NLA("{name}")  # add ar="..." for scores and trust labels',
    "several": 'nla = NLA("{name}")  # nla.explain(torch.stack([a, b], dim=-2)).text',
    "ar": 'nla = NLA("the verbalizer", ar="{name}")',
    "oracle": 'nla = NLA.on(model, av="{name}")  # nla.ask(vectors, "What is it about?").text',
}
_FIGURES = {
    "loss": "the training's own loss",
    "extraction": "the share of texts with both tags",
    "cosine": "between a vector and its reconstruction",
    "grounded_source": "the share of texts nearest to their own vector, of four; chance is .25",
    "grounded_mentions_so_far": "the share of what is quoted or named that the text has, so far",
    "grounded_position": "the share nearest to their own vector, of five positions; chance is .2",
    "length": "tokens",
    "accuracy": "the share of answers that are exactly right",
    "fve": "the fraction of variance that the text explains, 1 at best",
    "fve_trained": "the same, judged by the reconstructor that was trained along",
}
_LIMITS = {
    "av": """\
- It was trained on the model and the block above. A vector of another model or block gets a fluent
  text too, which means nothing.
- It says what its training labels say. A text is no evidence of what the target "thinks": compare
  it with controls (`nla.controls`), with its reconstruction (`nla.score`), and with interventions.
- Texts of the first positions of a prompt, and of vectors of an unusual norm, are unreliable.""",
    "several": """\
- It was trained on the model and the block above. Vectors of another model or block get a fluent
  text too, which means nothing.
- It says what its training labels say. Nothing measures how much of the vectors a text carries:
  compare it with the text of the vectors in another order, and with interventions.""",
    "oracle": """\
- It was trained on the model and the blocks above. A vector of another model or block gets a fluent
  answer too, which means nothing.
- An answer may be right without the vectors: `answer.trust` has what it answers without them.
- It says what its training labels say, which is no evidence of what the target "thinks".""",
    "ar": """\
- It was trained on the model and the block above; its reconstructions are not vectors of any other.
- A high cosine says that the words carry the vector, not that they are true.
- It was trained on texts like its training labels. Any other text gets a vector too, which means
  little.""",
}


def model_card(name: str, sidecar: Mapping[str, Any]) -> str:
    """Return a model card in Markdown, with the metadata that the Hub reads.

    Args:
        name: The checkpoint's name.
        sidecar: Its sidecar, as `Checkpoint.to_sidecar` makes it, with ``trained_on`` and
            ``training_log`` where they are known.
    """
    from huggingface_hub import ModelCardData

    role, target = sidecar["role"], sidecar["extraction"]["base_model"]
    if role == "av" and QUESTION_SLOT in sidecar["prompt_templates"]["av"]:
        role = "oracle"
    vectors = sidecar["tokens"].get("injection_vectors", 1)
    if role == "av" and vectors > 1:
        role = "several"
    layer, width = sidecar["extraction"]["layer_index"], sidecar["d_model"]
    words = {
        "target": target or "a model that is not named",
        "layer": layer,
        "next": layer + 1,
        "width": width,
        "name": name,
        "vectors": vectors,
    }
    about = ModelCardData(
        base_model=hub_id(target) if target else None,
        library_name="nnsight-nla",
        tags=["natural-language-autoencoder", "interpretability", _TITLES[role].replace(" ", "-")],
    )
    return f"""\
---
{about.to_yaml()}
---

# {name}

{_whose(role)} {_WHAT[role].format(**words)}

## Use

```python
from nnsight_nla import NLA  # pip install nnsight-nla

{_USE[role].format(**words)}
```

`nla_meta.yaml` has the settings: template, marker, how the vector is written.

## Training

{_list(_entry(each) for each in sidecar.get("trained_on") or [])}

## Held-out rows

{_list(_figures(sidecar.get("training_log") or []))}

## What it does not show

{_LIMITS[role]}

## Licence

Not stated. That of the base model and those of the training texts apply; state one before you
publish the weights.
"""


def _whose(role: str) -> str:
    if role == "oracle":
        return "An activation oracle (Karvonen et al. 2025)."
    return f"The {_TITLES[role]} of a Natural Language Autoencoder."


def _entry(entry: Any) -> str:
    """Say what a training read."""
    if not isinstance(entry, Mapping):
        return str(entry)
    stage = f"{entry['stage']}: " if entry.get("stage") else ""
    said = [f"{stage}{entry.get('rows', '?')} rows of `{entry.get('file', '?')}`"]
    if entry.get("blake2b"):
        said.append(f"blake2b {entry['blake2b']}")
    if entry.get("held_out"):
        said.append(f"{entry['held_out']:.0%} of the documents held out")
    if entry.get("steps"):
        said.append(f"{entry['steps']} steps")
    if entry.get("stopped"):
        said.append(f"stopped because {entry['stopped']}")
    if entry.get("kept_step"):
        said.append(f"step {entry['kept_step']} kept, the best by {entry.get('kept_by')}")
    return ", ".join(said)


def _figures(log: Iterable[Mapping[str, float]]) -> list[str]:
    """Return each measurement on held-out rows: of the step that was kept, or the last one."""
    last: dict[str, tuple[float, float]] = {}
    lines = list(log)
    for line in [each for each in lines if "kept" in each] or lines:
        for key, value in line.items():
            if key.startswith("eval_"):
                last[key.removeprefix("eval_")] = value, line.get("step", 0)
    return [
        f"{name}: {value:.4g} after {step:g} steps"
        + (f" ({_FIGURES[name]})" if name in _FIGURES else "")
        for name, (value, step) in last.items()
    ]


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines) or "Not recorded."
