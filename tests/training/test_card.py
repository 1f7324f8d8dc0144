"""The model card that a training writes: the Hub reads it, and it says what is known."""

import re

import pytest
from huggingface_hub import ModelCard

from nnsight_nla import NLA
from nnsight_nla.training import Lora, Settings, Watching, describe, train
from nnsight_nla.training.card import model_card
from tests.helpers.published import base, publish, records, tokenizer

NAMES = {"av": "activation verbalizer", "ar": "activation reconstructor"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards")
    base(folder / "base")
    publish(folder / "rows.parquet", records(), base_model="Qwen/Qwen3-8B")
    return folder


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["full", "adapter"])
@pytest.mark.parametrize("role", ["av", "ar"])
def test_a_training_writes_a_card(folder, role, lora):
    out = folder / f"{role}-{'lora' if lora else 'full'}"
    trained = train(
        role, folder / "rows.parquet", base=folder / "base", out=out, base_name="Qwen/Qwen3-8B",
        settings=Settings(steps=2, batch_size=4, learning_rate=1e-3, warmup=1, lora=lora),
        watching=Watching(every=2, rows=4, max_new_tokens=4), held_out=0.25,
    )  # fmt: skip
    card = ModelCard.load(out / "README.md")
    assert card.data.base_model == "Qwen/Qwen3-8B"
    assert card.data.library_name == "nnsight-nla"
    assert NAMES[role].replace(" ", "-") in card.data.tags
    text = card.text
    assert f"# {out.name}\n\nThe {NAMES[role]} of a" in text
    assert "block 1 (counted from 0, `hidden_states[2]`, 32 entries)" in text
    assert re.search(r"\d+ rows of `rows.parquet`, blake2b [0-9a-f]{32}, 25% of the docum", text)
    assert ", 2 steps" in text
    last = trained.log[-1]
    for key, value in last.items():
        if key.startswith("eval_"):
            assert f"- {key.removeprefix('eval_')}: {value:.4g} after 2 steps" in text
    assert "More Information Needed" not in text  # PEFT's own card.


def test_the_code_of_a_card_runs(folder):
    out = folder / "av-full"
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text("utf-8"), re.DOTALL)[1]
    found = {}
    exec(code.replace(f'"{out.name}"', f'"{out}"'), {}, found)
    assert isinstance(found["nla"], NLA)


def test_what_is_not_known_is_not_said():
    checkpoint = describe(tokenizer(), layer=1, d_model=32)
    card = ModelCard(model_card("mine", checkpoint.to_sidecar("av")))
    assert card.data.base_model is None
    assert card.text.count("Not recorded.") == 2
    assert "vector of a model that is not named in words" in card.text
    local = describe(tokenizer(), layer=1, d_model=32, base_model="/home/me/model")
    assert ModelCard(model_card("mine", local.to_sidecar("ar"))).data.base_model is None
    told = model_card("mine", checkpoint.to_sidecar("av", trained_on=["18000 residuals"]))
    assert "- 18000 residuals\n" in told
