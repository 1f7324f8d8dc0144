"""What the loss covers, that training writes as inference does, and one real step."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer

from nnsight_nla.checkpoint.checkpoint import AV_TEMPLATE, MARKER_SLOT, Checkpoint
from nnsight_nla.checkpoint.prompt import Prompt
from nnsight_nla.core.injection import Injection, norm_matched_add
from nnsight_nla.core.similarity import direction_mse
from nnsight_nla.errors import NLAError
from nnsight_nla.tiny import paths
from nnsight_nla.training import (
    INJECT,
    Lora,
    Reconstructor,
    Settings,
    TrainingError,
    describe,
    save_reconstructor,
    save_verbalizer,
    train_reconstructor,
    train_verbalizer,
)
from nnsight_nla.training.reconstructor import reconstruction_loss
from nnsight_nla.training.rows import IGNORED, collate, reconstructor_rows, verbalizer_rows
from nnsight_nla.training.saving import MARKERS
from nnsight_nla.training.verbalizer import response_logits, response_loss, writing
from tests.helpers import families

WIDTH, LAYER = 32, 1
ONE_STEP = Settings(steps=1, batch_size=2, learning_rate=1e-2, warmup=0)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(paths()["target"])


@pytest.fixture
def checkpoint(tokenizer):
    return describe(tokenizer, layer=LAYER, d_model=WIDTH, base_model="random")


def random_model(family, tokenizer, **changes):
    """Weights from U(-1, 1): a default initialisation is deaf to what is written into it."""
    import transformers

    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = getattr(transformers, f"{family}Config")(**(shape | changes))
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.uniform_(weight, -1, 1)
    return model.eval()


def make_rows(number=4, width=WIDTH):
    generator = torch.Generator().manual_seed(1)
    prompt = [{"role": "user", "content": AV_TEMPLATE.replace(MARKER_SLOT, INJECT)}]
    return [
        {
            "prompt": prompt,
            "response": f"<explanation>\nAbout Paris{', France' * i}.\n</explanation>",
            "activation_vector": torch.randn(width, generator=generator).tolist(),
            "provenance": "ignored",
        }
        for i in range(number)
    ]


def test_describe_reads_the_ids_off_the_tokenizer(tokenizer, checkpoint):
    assert tokenizer.decode([checkpoint.marker_id]) == "㈎"
    assert tokenizer.decode([checkpoint.left_id]) == ">"
    assert tokenizer.decode([checkpoint.right_id]) == "</"
    assert tokenizer.decode(list(checkpoint.ar_suffix_ids)).endswith("text> <summary>")
    for text in ("Plain words", "With a stop.", "A line\n"):
        ids = tokenizer.encode(checkpoint.ar_template.replace("{explanation}", text))
        assert tuple(ids[-len(checkpoint.ar_suffix_ids) :]) == checkpoint.ar_suffix_ids


def test_a_marker_that_splits_is_refused(tokenizer):
    with pytest.raises(TrainingError, match=r"'㎡' is \d tokens .*, expected one"):
        describe(tokenizer, layer=1, d_model=WIDTH, marker="㎡")


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gemma"])
def test_a_marker_that_the_tokenizer_has_is_found(family, tmp_path):
    """The first of the list that is one token; it is named where another choice was wrong."""
    families.save(tmp_path, family, pad_is_eos=False)
    live = AutoTokenizer.from_pretrained(tmp_path)
    live.add_tokens(["§"])
    found = describe(live, layer=1, d_model=WIDTH)
    assert found.marker == "§" != MARKERS[0]
    assert found.marker_id == live.convert_tokens_to_ids("§")
    with pytest.raises(TrainingError, match=r"one token here, such as .*§.*, or add it"):
        describe(live, layer=1, d_model=WIDTH, marker="㎡")


def test_a_tokenizer_that_splits_every_marker():
    class Splits:
        def encode(self, text, **options):
            return [1, 2]

        def convert_tokens_to_ids(self, text):
            return None

        def get_added_vocab(self):
            return {}

    with pytest.raises(TrainingError, match=r"splits each of ㈎ †.*Pass marker= with a rare"):
        describe(Splits(), layer=1, d_model=WIDTH)


def test_the_loss_covers_the_response_and_its_end_only(tokenizer, checkpoint):
    rows, prompt = verbalizer_rows(make_rows(), tokenizer, checkpoint)
    assert prompt == Prompt.render(checkpoint, tokenizer)
    batch = collate([rows[0], rows[3]])
    for row, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
        assert tuple(ids[: len(prompt.ids)].tolist()) == prompt.ids
        learned = ids[labels != IGNORED].tolist()
        response = make_rows()[3 * row]["response"]
        assert learned == [*tokenizer.encode(response), tokenizer.eos_token_id]
        assert (labels[: len(prompt.ids)] == IGNORED).all()
        assert (labels[batch["last"][row] + 1 :] == IGNORED).all()


def test_the_loss_by_hand(tokenizer, checkpoint):
    model = random_model("Qwen3", tokenizer)
    rows, prompt = verbalizer_rows(make_rows(2), tokenizer, checkpoint)
    batch = collate([rows[0], rows[1]])
    with torch.no_grad(), writing(model, prompt.marker_position, checkpoint.injection) as hook:
        hook.vectors = batch["vectors"]
        loss = response_loss(model, batch, len(prompt.ids))
        logits = model(batch["input_ids"]).logits
    surprise = [
        -logits[row, i - 1].log_softmax(-1)[label]
        for row, labels in enumerate(batch["labels"])
        for i, label in enumerate(labels)
        if label != IGNORED
    ]
    torch.testing.assert_close(loss, torch.stack(surprise).mean())


@pytest.mark.parametrize("family", ["Qwen3", "Llama"])
def test_training_writes_the_vector_as_a_plain_hook_does(tokenizer, checkpoint, family):
    model = random_model(family, tokenizer)
    rows, prompt = verbalizer_rows(make_rows(3), tokenizer, checkpoint)
    batch = collate([rows[i] for i in range(3)])
    start, marker = len(prompt.ids), prompt.marker_position
    with torch.no_grad(), writing(model, marker, checkpoint.injection) as hook:
        hook.vectors = batch["vectors"]
        found = response_logits(model, batch, start)

    def plain(module, arguments, output):
        changed = output.clone()
        for row, vector in enumerate(batch["vectors"]):
            changed[row, marker] = norm_matched_add(output[row, marker], vector)
        return changed

    handle = model.model.layers[1].register_forward_hook(plain)
    with torch.no_grad():
        expected = model(batch["input_ids"]).logits[:, start - 1 : -1]
        handle.remove()
        silent = model(batch["input_ids"]).logits[:, start - 1 : -1]
    torch.testing.assert_close(found, expected)
    assert (found - silent).abs().max() > 0.1
    assert not model.model.layers[1]._forward_hooks


def test_the_embedding_site_gets_its_vector_too(tokenizer):
    injection = Injection("replace", "embedding", None, 5.0)
    model = random_model("Llama", tokenizer)
    ids = torch.tensor([[4, 5, 6]])
    seen = []
    with torch.no_grad(), writing(model, 1, injection) as hook:
        hook.vectors = torch.ones(1, WIDTH)
        keep = model.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model(ids)
        keep.remove()
    table = model.get_input_embeddings().weight
    torch.testing.assert_close(seen[0][0, 1].norm(), torch.tensor(5.0))
    torch.testing.assert_close(seen[0][0, [0, 2]], table[[4, 6]])


@pytest.mark.parametrize("family", ["Qwen3", "Llama"])
@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4)], ids=["full", "lora"])
def test_one_step_lowers_the_loss_and_saves_a_checkpoint(
    tokenizer, checkpoint, family, lora, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    model = random_model(family, tokenizer)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    rows, prompt = verbalizer_rows(make_rows(2), tokenizer, checkpoint)
    batch = collate([rows[0], rows[1]])
    lines = []
    settings = dataclasses.replace(ONE_STEP, lora=lora, steps=2, learning_rate=1e-3)
    with writing(model, prompt.marker_position, checkpoint.injection) as hook:
        hook.vectors = batch["vectors"]
        first = response_loss(model, batch, len(prompt.ids)).item()
    av = train_verbalizer(model, tokenizer, make_rows(2), checkpoint, settings, report=lines.append)
    with writing(model, prompt.marker_position, checkpoint.injection) as hook:
        hook.vectors = batch["vectors"]
        assert response_loss(av, batch, len(prompt.ids)).item() < first
    changed = {
        name
        for name, weight in model.named_parameters()
        if name in before and not torch.equal(weight, before[name])
    }
    assert bool(changed) == (lora is None)
    assert lines[-1].startswith("step 2 of 2, loss ")
    assert not av.training
    # Quiet, and nothing left behind.
    assert capsys.readouterr().out == ""
    assert list(Path.cwd().iterdir()) == []

    save_verbalizer(tmp_path / "av", av, tokenizer, checkpoint, trained_on=["four rows"])
    loaded = Checkpoint.load(tmp_path / "av")
    assert dataclasses.replace(loaded, source={}, sidecar_hash=None) == checkpoint
    sidecar = yaml.safe_load((tmp_path / "av" / "nla_meta.yaml").read_text())
    assert sidecar["training"]["injection_mode"] == "karvonen_add_norm_matched"
    assert sidecar["trained_on"] == ["four rows"]
    adapter = (tmp_path / "av" / "adapter_config.json").is_file()
    assert adapter == (lora is not None)


def test_the_order_of_rows_and_the_result_depend_on_the_seed_only(tokenizer, checkpoint):
    weights = []
    for _ in range(2):
        model = random_model("Qwen3", tokenizer)
        train_verbalizer(model, tokenizer, make_rows(6), checkpoint, ONE_STEP)
        weights.append(model.lm_head.weight.detach())
    assert torch.equal(*weights)


@pytest.mark.parametrize("family", ["Qwen3", "Llama"])
def test_a_reconstructor_starts_as_the_residual_at_the_last_token(tokenizer, checkpoint, family):
    whole = random_model(family, tokenizer)
    rows = reconstructor_rows(make_rows(3), tokenizer, checkpoint)
    batch = collate([rows[i] for i in range(3)])
    expected = []
    with torch.no_grad():
        for ids, last in zip(batch["input_ids"], batch["last"], strict=True):
            # The output of block LAYER, no final norm, each text alone and unpadded.
            hidden = whole(ids[None, : last + 1], output_hidden_states=True).hidden_states
            expected.append(hidden[LAYER + 1][0, -1])
        reconstructor = Reconstructor(random_model(family, tokenizer), LAYER)
        found = reconstructor(batch["input_ids"], batch["last"])
    torch.testing.assert_close(found, torch.stack(expected))
    assert reconstructor.model.config.num_hidden_layers == len(reconstructor.model.model.layers)
    assert torch.equal(reconstructor.head.weight, torch.eye(WIDTH))
    assert reconstructor.head.bias is None


def test_the_reconstruction_loss_is_between_directions(tokenizer, checkpoint):
    rows = reconstructor_rows(make_rows(3), tokenizer, checkpoint)
    batch = collate([rows[i] for i in range(3)])
    reconstructor = Reconstructor(random_model("Qwen3", tokenizer), LAYER)
    with torch.no_grad():
        loss = reconstruction_loss(reconstructor, batch)
        predicted = reconstructor(batch["input_ids"], batch["last"])
        batch["vectors"] *= 7
        scaled = reconstruction_loss(reconstructor, batch)
    torch.testing.assert_close(loss, direction_mse(predicted, batch["vectors"]).mean())
    torch.testing.assert_close(loss, scaled)


@pytest.mark.parametrize("family", ["Qwen3", "Llama"])
def test_a_reconstructor_trains_and_saves(tokenizer, checkpoint, family, tmp_path):
    from transformers import AutoModelForCausalLM

    rows = make_rows(2)
    batch = collate([reconstructor_rows(rows, tokenizer, checkpoint)[i] for i in range(2)])
    base = random_model(family, tokenizer)
    with torch.no_grad():
        first = reconstruction_loss(Reconstructor(base, LAYER), batch)
    settings = dataclasses.replace(ONE_STEP, steps=3, learning_rate=1e-3)
    ar = train_reconstructor(random_model(family, tokenizer), tokenizer, rows, checkpoint, settings)
    with torch.no_grad():
        assert reconstruction_loss(ar, batch) < first
        expected = ar(batch["input_ids"], batch["last"])
    save_reconstructor(tmp_path, ar, tokenizer, checkpoint)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_hidden_layers"] == LAYER + 1
    assert len(config.get("layer_types", [0] * (LAYER + 1))) == LAYER + 1
    assert Checkpoint.load(tmp_path).layer == LAYER
    head = load_file(tmp_path / "value_head.safetensors")
    assert list(head) == ["weight"]
    # Loaded as any model is, and read before its final norm.
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    seen = []
    loaded.model.layers[LAYER].register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        loaded(batch["input_ids"])
    last = seen[0][torch.arange(2), batch["last"]]
    torch.testing.assert_close(last @ head["weight"].T, expected)


def with_prompt(content, role="user"):
    row = make_rows(1)[0]
    return [{**row, "prompt": [{"role": role, "content": content}]}]


TEMPLATE = AV_TEMPLATE.replace(MARKER_SLOT, INJECT)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            with_prompt("Describe."),
            "Row 0: the prompt contains <INJECT> 0 times, expected exactly once",
        ),
        (with_prompt(TEMPLATE + INJECT), "Row 0: the prompt contains <INJECT> 2 times"),
        (with_prompt(TEMPLATE, role="system"), "Row 0: the prompt has the roles system"),
        (
            with_prompt(f"Describe <concept>{INJECT}</concept>"),
            "differs from the checkpoint's template",
        ),
        (make_rows(1, width=8), r"Row 0: activation_vector has shape \[8\], expected \[32\]"),
        ([{**make_rows(1)[0], "activation_vector": [0.0] * WIDTH}], "Row 0: .* is zero"),
        ([], "no rows"),
    ],
)
def test_rows_that_do_not_fit_are_named(tokenizer, checkpoint, rows, message):
    model = random_model("Qwen3", tokenizer)
    with pytest.raises(TrainingError, match=message) as caught:
        train_verbalizer(model, tokenizer, rows, checkpoint, ONE_STEP)
    assert isinstance(caught.value, NLAError)


def test_models_that_do_not_fit_are_named(tokenizer, checkpoint):
    model = random_model("Qwen3", tokenizer)
    wide = dataclasses.replace(checkpoint, d_model=64)
    with pytest.raises(TrainingError, match="has d_model 32, the checkpoint says 64"):
        train_verbalizer(model, tokenizer, make_rows(), wide, ONE_STEP)
    with pytest.raises(TrainingError, match="has d_model 32, the checkpoint says 64"):
        train_reconstructor(model, tokenizer, make_rows(), wide, ONE_STEP)
    with pytest.raises(TrainingError, match="has blocks 0 to 3; a reconstructor of layer 4"):
        Reconstructor(model, 4)
    without = dataclasses.replace(checkpoint, ar_template=None)
    with pytest.raises(TrainingError, match="no ar_template"):
        train_reconstructor(model, tokenizer, make_rows(), without, ONE_STEP)


def test_training_and_inference_give_the_same_logits(pair):
    """Both paths on the same row: the shipped verbalizer generates, training reads along."""
    from transformers import AutoModelForCausalLM

    from nnsight_nla.checkpoint.reply import wrap
    from nnsight_nla.tiny.examples import collect
    from nnsight_nla.tiny.facts import held_out_pairs
    from tutorials.recipes.tiny.collect_rows import as_rows

    model, nla = pair
    held = collect(model, sorted(held_out_pairs()), documents=1, per_document=2, seed=8)
    vector, checkpoint = held.vectors[:1], nla.checkpoint
    steps = []
    nla.av.dispatch()
    head = nla.av._module.lm_head
    thought = nla.explain(vector)
    handle = head.register_forward_hook(lambda _, __, output: steps.append(output[0, -1].detach()))
    raw = thought.raw[0]
    handle.remove()
    assert raw == wrap(thought.text[0])

    plain = AutoModelForCausalLM.from_pretrained(paths()["av"], dtype=torch.float32).eval()
    row = {**as_rows(held)[0], "response": raw}
    rows, prompt = verbalizer_rows([row], nla.av.tokenizer, checkpoint)
    batch = collate([rows[0]])
    with torch.no_grad(), writing(plain, prompt.sites, checkpoint.injection) as hook:
        hook.vectors = batch["vectors"]
        expected = response_logits(plain, batch, len(prompt.ids))[0]
        hook.vectors = -batch["vectors"]
        other = response_logits(plain, batch, len(prompt.ids))[0]
    # The last row predicts what follows the closing tag, where inference has stopped.
    found = torch.stack(steps)[-len(expected) + 1 :]
    torch.testing.assert_close(found, expected[:-1], rtol=1e-4, atol=1e-4)
    assert (found - other[:-1]).abs().max() > 1
