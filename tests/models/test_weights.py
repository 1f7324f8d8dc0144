"""A checkpoint whose keys are not those of its model is an error that names them, in every role."""

import re

import pytest
import torch
from nnsight import TransformersModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from nnsight_nla import NLA, CheckpointError, Sampling, bulk, tiny, training
from nnsight_nla.experiments import logit_difference, patch
from nnsight_nla.models import weights
from nnsight_nla.models.loading import load_model
from tests.helpers.checkpoints import copied, edit_json, edit_weights

PATHS = tiny.paths()
SHORT = Sampling(max_new_tokens=4)
PROMPT = "People in Paris speak"


@pytest.fixture(autouse=True)
def _quiet():
    """As on the command line, where transformers' own report is not seen."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


def without_blocks(*numbers):
    names = tuple(f"model.layers.{number}." for number in numbers)
    return lambda held: {name: each for name, each in held.items() if not name.startswith(names)}


def without_norm(held):
    return {name: each for name, each in held.items() if name != "model.norm.weight"}


def prefixed(held):
    return {f"module.{name}": each for name, each in held.items()}


def narrower(held):
    name = "model.layers.1.mlp.up_proj.weight"
    return {**held, name: held[name][:, :64]}


def with_more(held):
    return {**held, "model.layers.0.adapter.weight": torch.ones(2)}


DAMAGE = {
    "two blocks are gone": (
        without_blocks(1, 2),
        r"22 missing \(model\.layers\.1\.input_layernorm\.weight, .* and 18 more\)\. What is "
        r"missing would be random",
    ),
    "a prefix": (
        prefixed,
        r"missing \(.*unexpected \(module\.model\..*Every key of the file begins with 'module\.', "
        r".*key_mapping=\{'\^module\\\\\.': ''\}",
    ),
    "another shape": (
        narrower,
        r"1 of another shape \(model\.layers\.1\.mlp\.up_proj\.weight \(384, 64\) instead of "
        r"\(384, 128\)\)",
    ),
    "a key too many": (
        with_more,
        r"1 unexpected \(model\.layers\.0\.adapter\.weight\)\. If they are not needed, save",
    ),
}


def run_verbalizer(folder, _):
    nla = NLA(folder, checkpoint=PATHS["av"], sampling=SHORT)
    return nla, lambda: nla.explain(torch.ones(128)).text


def run_reconstructor(folder, _):
    nla = NLA(PATHS["av"], ar=folder)
    return nla, lambda: nla.reconstruct("About Rome.")


def run_patch(folder, nla):
    model = load_model(folder, None, None, {})
    options = {"metric": logit_difference(" French", " Italian"), "layers": [1], "positions": [2]}
    return nla, lambda: patch(model, nla, PROMPT, "People in Rome speak", **options)


def run_doctor(folder, nla):
    model = load_model(folder, None, None, {})
    return nla, lambda: nla.doctor(model, texts=[PROMPT, "I like Rome"], sampling=SHORT)


def run_target(folder, nla):
    model = TransformersModel(str(folder), task="text-generation")

    def trace():
        with model.trace(PROMPT):
            thought = nla.explain(nla.layer(model).output[0, -1])
        return thought

    return nla, trace


def run_reading(folder, nla):
    model = load_model(folder, None, None, {})
    return nla, lambda: nla.read(model, PROMPT, sampling=SHORT)


def run_extract(folder, nla):
    texts = folder.parent / "texts.jsonl"
    texts.write_text(f'{{"text": "{PROMPT}"}}\n', "utf-8")
    model = load_model(folder, None, None, {})
    output = folder.parent / "rows.parquet"
    return nla, lambda: bulk.extract(model, texts, output, checkpoint=nla.checkpoint)


def run_live_verbalizer(folder, _):
    live = TransformersModel(str(folder), task="text-generation", dtype=torch.float32)
    nla = NLA(live, checkpoint=PATHS["av"], sampling=SHORT)
    return nla, lambda: nla.explain(torch.ones(128)).text


ROLES = {
    "verbalizer": ("av", run_verbalizer),
    "live verbalizer": ("av", run_live_verbalizer),
    "reconstructor": ("ar", run_reconstructor),
    "target in a trace": ("target", run_target),
    "target of a reading": ("target", run_reading),
    "target of a doctor": ("target", run_doctor),
    "target of a patch": ("target", run_patch),
    "target of a data set": ("target", run_extract),
}


FULL = ("verbalizer", "reconstructor", "target of a reading")


@pytest.mark.parametrize(
    ("role", "damage"),
    [(role, damage) for role in ROLES for damage in (DAMAGE if role in FULL else list(DAMAGE)[:1])],
)
def test_every_role_refuses_every_damage(tmp_path, nla, role, damage):
    (name, start), (change, message) = ROLES[role], DAMAGE[damage]
    _, run = start(edit_weights(copied(PATHS[name], tmp_path / name), change), nla)
    called = role.split()[-1] if "verbalizer" in role else role.split()[0]
    for _ in range(2):  # The second time, nothing may be in memory that looks loaded.
        with pytest.raises(CheckpointError, match=rf"^The weights of the {called} .*{message}"):
            run()


@pytest.mark.parametrize("role", FULL)
def test_a_complete_checkpoint_runs_in_every_role(tmp_path, nla, role):
    name, start = ROLES[role]
    _, run = start(copied(PATHS[name], tmp_path / name), nla)
    run()


def test_a_bridge_of_an_incomplete_checkpoint(tmp_path, nla):
    bridges = pytest.importorskip("transformer_lens.model_bridge")
    folder = edit_weights(copied(PATHS["target"], tmp_path / "target"), without_blocks(2))
    bridge = bridges.TransformerBridge.boot_transformers(str(folder), device="cpu")
    with pytest.raises(CheckpointError, match=r"^The weights of the target .*11 missing"):
        nla.layer(bridge)


def test_a_prefix_is_mapped_as_the_message_says(tmp_path, nla, residuals):
    folder = edit_weights(copied(PATHS["av"], tmp_path / "av"), prefixed)
    mapped = NLA(folder, dtype=torch.float32, key_mapping={r"^module\.": ""})
    assert mapped.explain(residuals[-1]).text == nla.explain(residuals[-1]).text


def test_a_reconstructor_may_lack_what_it_never_runs(tmp_path, nla):
    """Published ones have no final norm; others are complete models, cut when they are loaded."""
    expected = nla.reconstruct("About Rome.")
    bare = edit_weights(
        copied(PATHS["ar"], tmp_path / "bare"),
        without_norm,
    )
    assert torch.equal(
        NLA(PATHS["av"], ar=bare, dtype=torch.float32).reconstruct("About Rome."), expected
    )
    with pytest.warns(match="identity as head"):
        cut = NLA(PATHS["av"], ar=PATHS["target"])
    cut.reconstruct("About Rome.")
    normless = NLA(edit_weights(copied(PATHS["av"], tmp_path / "av"), without_norm))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        normless.explain(torch.ones(128)).text  # noqa: B018


def test_the_base_of_an_adapter(tmp_path, nla):
    """The adapter runs on the target, whose weights it loads."""
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(PATHS["target"])
    lora = copied(PATHS["av"], tmp_path / "lora")
    (lora / "model.safetensors").unlink()
    (lora / "config.json").unlink()
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(lora)
    folder = edit_weights(copied(PATHS["target"], tmp_path / "target"), without_blocks(4))
    target = TransformersModel(str(folder), task="text-generation", dtype=torch.float32)
    shared = NLA.on(target, lora, sampling=SHORT)
    with pytest.raises(CheckpointError, match=r"^The weights of the target .*11 missing"):
        shared.explain(torch.ones(128)).text  # noqa: B018


def test_training_starts_from_complete_weights_only(tmp_path):
    folder = edit_weights(copied(PATHS["target"], tmp_path / "base"), without_blocks(5))
    with pytest.raises(CheckpointError, match=r"^The weights of the model .*11 missing"):
        weights.load_module(AutoModelForCausalLM, folder)
    whole = weights.load_module(AutoModelForCausalLM, PATHS["target"])
    assert not any(each.is_meta for each in whole.parameters())
    assert training.run.load_module is weights.load_module


def test_a_configuration_of_fewer_blocks(tmp_path):
    """The other way round: the weights are complete, and the configuration hides some."""
    folder = edit_json(
        copied(PATHS["av"], tmp_path / "av"),
        "config.json",
        num_hidden_layers=5,
        layer_types=["full_attention"] * 5,
    )
    with pytest.raises(CheckpointError, match=r"11 unexpected \(model\.layers\.5\."):
        NLA(folder).explain(torch.ones(128)).text  # noqa: B018


@pytest.mark.parametrize("content", [b"", b"not safetensors", None])
def test_weights_that_cannot_be_read(tmp_path, content):
    folder = copied(PATHS["av"], tmp_path / "av")
    file = folder / "model.safetensors"
    if content is None:
        file.write_bytes(file.read_bytes()[:1000])
    else:
        file.write_bytes(content)
    message = rf"^The weights of the verbalizer {re.escape(str(folder))} could not be loaded: \w"
    with pytest.raises(CheckpointError, match=message):
        NLA(folder).explain(torch.ones(128)).text  # noqa: B018


def test_a_model_that_was_never_loaded_passes():
    """A module that the user built has no report, and its weights are the user's business."""
    module = AutoModelForCausalLM.from_config(
        AutoModelForCausalLM.from_pretrained(PATHS["av"]).config
    )
    weights.check(module)


def test_what_no_text_runs_may_be_missing_or_too_much():
    """A language model out of a multimodal checkpoint, and one without its towers."""
    towers = (
        "vision_tower.layers.0.weight",
        "model.multi_modal_projector.bias",
        "audio_tower.conv",
    )
    report = weights.LoadReport(
        missing=towers, unexpected=tuple(f"model.{each}" for each in towers)
    )
    weights._refuse(report, "some/model", "target")
    for more in (
        weights.LoadReport(missing=(*towers, "model.layers.0.mlp.up_proj.weight")),
        weights.LoadReport(unexpected=(*towers, "model.layers.9.norm")),
    ):
        with pytest.raises(CheckpointError, match=r"1 (missing|unexpected) \(model\.layers\."):
            weights._refuse(more, "some/model", "target")
