"""Let the model write: one passage for each form of request and each subject.

    python -m tutorials.recipes.smollm2.write_passages WORK 1/2

Each process writes every n-th batch to a file of its own. A batch that is in the file already is
not written again, and each has a seed of its own, so an interrupted run continues with the texts
that it would have had.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from nnsight_nla.smollm2 import target

from .sources import FORMS, SUBJECTS

BATCH, TOKENS = 64, 112


def write_passages(folder: Path, shard: int, shards: int) -> None:
    """Write the passages of one shard to ``folder/passages.SHARD.jsonl``.

    Args:
        folder: Where the file goes.
        shard: This process, from 0.
        shards: How many there are.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    requests = [(form, subject) for form in FORMS for subject in SUBJECTS]
    batches = [requests[i : i + BATCH] for i in range(0, len(requests), BATCH)]
    path = folder / f"passages.{shard}.jsonl"
    done = {json.loads(line)["batch"] for line in path.open()} if path.exists() else set[int]()
    source = target.converted()
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.bfloat16, attn_implementation="eager"
    ).eval()
    for number in range(shard, len(batches), shards):
        if number in done:
            continue
        torch.manual_seed(number)
        chats = [
            [{"role": "user", "content": form.request.format(subject)}]
            for form, subject in batches[number]
        ]
        given = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            ids = model.generate(
                **given, max_new_tokens=TOKENS, do_sample=True, temperature=0.8, top_p=0.95, top_k=0
            )
        texts = tokenizer.batch_decode(
            ids[:, given["input_ids"].shape[1] :], skip_special_tokens=True
        )
        with path.open("a") as file:
            for (form, subject), text in zip(batches[number], texts, strict=True):
                name = f"{form.name}/{subject}/0"
                file.write(json.dumps({"batch": number, "id": name, "text": text}) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one shard; the command line names the folder and the shard, as ``i/n``."""
    parser = argparse.ArgumentParser(prog="python -m tutorials.recipes.smollm2.write_passages")
    parser.add_argument("folder", type=Path)
    parser.add_argument("shard")
    options = parser.parse_args(arguments)
    shard, shards = map(int, options.shard.split("/"))
    torch.set_num_threads(1)
    write_passages(options.folder, shard - 1, shards)


if __name__ == "__main__":
    main()
