"""The facade: what it refuses and in which words, and that it still works afterwards."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from nnsight import TransformersModel

from nnsight_nla import (
    NLA,
    Checkpoint,
    CheckpointError,
    Injection,
    InjectionError,
    NLAWarning,
    ReconstructionError,
    Sampling,
    VerbalizationError,
    tiny,
)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the tiny verbalizer's folder, to be broken."""
    folder = Path(shutil.copytree(tiny.paths()["av"], tmp_path / "av"))
    (folder / "nla_calibration.json").unlink()  # It is of the sidecar before a test edits it.
    return folder


def rewrite(folder: Path, change) -> None:
    file = folder / "nla_meta.yaml"
    sidecar = yaml.safe_load(file.read_text("utf-8"))
    change(sidecar)
    file.write_text(yaml.safe_dump(sidecar, allow_unicode=True), "utf-8")


BAD_VECTORS = {
    "integers": (
        torch.zeros(3, 128, dtype=torch.long),
        "got torch.int64. Pass residuals, not token",
    ),
    "booleans": (torch.zeros(128, dtype=torch.bool), "got torch.bool"),
    "meta": (torch.empty(128, device="meta"), "on the meta device, which has no values"),
    "width": (torch.zeros(3, 64), r"got \[3, 64\]. Read the residual of the model"),
    "scalar": (torch.tensor(1.0), r"got \[\]"),
    "string": ("a vector", "got str 'a vector'"),
    "none": (None, "got NoneType"),
    "list": ([0.0] * 128, "got a list of 128 float"),
}


@pytest.mark.parametrize("bad", BAD_VECTORS)
def test_a_bad_vector_is_refused_at_explain_and_the_nla_still_works(nla, residuals, bad):
    vector, message = BAD_VECTORS[bad]
    with pytest.raises(InjectionError, match=message) as caught:
        nla.explain(vector)
    assert "shape [..., 128]" in str(caught.value)
    assert nla.pending == ()
    assert nla.explain(residuals[-1]).text


def test_a_bad_vector_inside_a_trace_is_the_same_error(model, nla):
    with (
        pytest.raises(InjectionError, match=r"got \[1, 9, 1304\]|got \[1, "),
        model.trace("What a lovely day! People in Paris speak"),
    ):
        nla.explain(model.lm_head.output)
    with model.trace("People in Paris speak"):
        thought = nla.explain(nla.layer(model).output[0, -1])
    assert thought.text


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"samples": 0}, "samples=0: expected a whole number from 1"),
        ({"samples": 2}, r"at temperature 0 would give the same text 2 times. .*temperature=1.0"),
        ({"samples": True}, "samples=True"),
        ({"sampling": {"temperature": 1}}, r"expected Sampling\(...\)"),
    ],
)
def test_bad_options_of_explain(nla, residuals, kwargs, message):
    with pytest.raises(VerbalizationError, match=message):
        nla.explain(residuals, **kwargs)


def test_bad_options_of_the_constructor():
    av = tiny.paths()["av"]
    with pytest.raises(VerbalizationError, match="batch_size=0: expected 'auto' or a whole number"):
        NLA(av, batch_size=0)
    with pytest.raises(VerbalizationError, match=r"sampling=1.0: expected Sampling"):
        NLA(av, sampling=1.0)
    with pytest.raises(CheckpointError, match="expected a Checkpoint, an Injection"):
        NLA(av, checkpoint=3)


def test_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither a folder on this machine .*nor a Hub id"):
        NLA(tmp_path / "nowhere")


def test_a_hub_id_with_no_network_says_what_was_looked_for_and_what_to_do(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        NLA("someone/an-av")
    for part in (
        "'someone/an-av'",
        "nla_meta.yaml",
        "cache",
        "NLA('/path/to/an-av')",
        "tiny.load()",
    ):
        assert part in str(caught.value)
    with pytest.raises(CheckpointError, match=r"No tokenizer for ceselder.*Qwen/Qwen3-8B"):
        NLA("ceselder/nanonla-l24-av-qwen3-8b")


def test_a_folder_without_a_sidecar(folder):
    (folder / "nla_meta.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"has no nla_meta.yaml or nla_meta.json"):
        NLA(folder)


SIDECARS = {
    "kind": (
        lambda s: s.update(kind="nla_toaster"),
        "kind is 'nla_toaster', expected one of nla_model",
    ),
    "marker id": (
        lambda s: s["tokens"].update(injection_token_id=7),
        r"tokenizes to \[\d+\], but .*injection_token_id.* says \[7\]. Use the tokenizer",
    ),
    "neighbour": (
        lambda s: s["tokens"].update(injection_left_neighbor_id=7),
        "Expected exactly 1 x '㈎' .* between 7 and .* found 0",
    ),
    "no slot": (
        lambda s: s["prompt_templates"].update(av="no marker here"),
        r"contains {injection_char} 0 times, expected at least once",
    ),
    "two slots": (
        lambda s: s["prompt_templates"].update(av="{injection_char} and {injection_char}"),
        r"Expected exactly 2 x '㈎' .* found 0",
    ),
    "width": (
        lambda s: s.update(d_model=64),
        r"has d_model 128, its checkpoint says 64. Use the weights and the sidecar of one",
    ),
    "layer": (
        lambda s: s["training"].update(injection_layer=99),
        "written at block 99, .* has blocks 0 to 5",
    ),
    "whitened": (lambda s: s["extraction"].update(norm="whitened"), "trained on whitened vectors"),
    "mode": (lambda s: s.pop("training"), "does not say how the vector is written"),
}


@pytest.mark.parametrize("case", SIDECARS)
def test_a_broken_sidecar_is_refused_before_any_weights_are_read(folder, case):
    change, message = SIDECARS[case]
    rewrite(folder, change)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(CheckpointError, match=message):
        NLA(folder)


def test_a_malformed_sidecar(folder):
    (folder / "nla_meta.yaml").write_text("kind: [", "utf-8")
    with pytest.raises(CheckpointError, match="not readable as YAML"):
        NLA(folder)


def test_a_prompt_longer_than_the_context(folder):
    rewrite(
        folder,
        lambda s: s["prompt_templates"].update(
            av="<concept>{injection_char}</concept>" + " cow" * 600
        ),
    )
    with pytest.raises(CheckpointError, match=r"prompt has \d+ tokens, .* reads 512 at most"):
        NLA(folder)


def test_a_tokenizer_that_splits_the_marker(folder):
    file = folder / "tokenizer.json"
    text = file.read_text("utf-8")
    assert "㈎" in text
    file.write_text(text.replace("㈎", "㈏"), "utf-8")
    with pytest.raises(CheckpointError, match=r"'㈎' tokenizes to \[\d+, .*Use the tokenizer"):
        NLA(folder)


def test_missing_neighbours_are_read_off_the_live_prompt(folder, nla):
    def drop(sidecar):
        del sidecar["tokens"]["injection_left_neighbor_id"]
        del sidecar["tokens"]["injection_right_neighbor_id"]

    rewrite(folder, drop)
    found = NLA(folder).checkpoint
    assert (found.left_id, found.right_id) == (nla.checkpoint.left_id, nla.checkpoint.right_id)
    assert found.source["left_id"] == "the live tokenizer"
    assert "injection_token_id in" in found.source["marker_id"]


def test_a_checkpoint_without_a_tokenizer_uses_the_base_models_and_says_so(folder):
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / file).unlink(missing_ok=True)
    base = str(tiny.paths()["target"])
    rewrite(folder, lambda s: s["extraction"].update(base_model=base))
    assert NLA(folder).checkpoint.source["tokenizer"] == base
    assert NLA(tiny.paths()["av"]).checkpoint.source["tokenizer"] == str(tiny.paths()["av"])


def test_the_callers_injection_and_checkpoint_win(residuals):
    av = tiny.paths()["av"]
    mine = NLA(av, checkpoint=Injection("add", "block", 0))
    assert mine.checkpoint.injection.layer == 0
    assert mine.checkpoint.source["injection"] == "the caller"
    hand = Checkpoint(**{**vars(mine.checkpoint), "source": {}})
    assert NLA(av, checkpoint=hand).checkpoint.source["layer"] == "the caller"


def test_layer_is_the_envoy_of_block_k(model, nla):
    assert nla.layer(model) is model.model.layers[3]
    assert nla.hook_name == "blocks.3.hook_out"


def test_layer_refuses_another_width_and_a_missing_block(nla, model):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    def small(**changes):
        shape = {"num_hidden_layers": 2, "hidden_size": 128, "vocab_size": 64, "head_dim": 16}
        shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
        module = Qwen3ForCausalLM(Qwen3Config(**{**shape, **changes}))
        return TransformersModel(module, task="text-generation", tokenizer=model.tokenizer)

    with pytest.raises(InjectionError, match="has d_model 64, the verbalizer reads 128"):
        nla.layer(small(hidden_size=64))
    with pytest.raises(InjectionError) as caught:
        nla.layer(small())
    assert "has blocks 0 to 1" in str(caught.value)
    assert "block 3 was requested" in str(caught.value)
    with pytest.raises(InjectionError, match="Expected an nnsight TransformersModel, got str"):
        nla.layer("Qwen/Qwen3-8B")


def test_another_base_models_name_is_a_warning_once(nla, model, tmp_path):
    copy = shutil.copytree(tiny.paths()["target"], tmp_path / "copy")
    nla.layer(TransformersModel(str(copy), task="text-generation"))  # The same model: no warning.
    other = shutil.copytree(copy, tmp_path / "another")
    config = json.loads((other / "config.json").read_text("utf-8"))
    (other / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 64}))
    stranger = TransformersModel(str(other), task="text-generation")
    with pytest.warns(NLAWarning, match="was trained on the residuals of .* this is .*another"):
        nla.layer(stranger)
    nla.layer(stranger)  # filterwarnings = error: a second warning would fail here
    nla.layer(model)


def test_options_for_a_live_model_are_refused(model):
    with pytest.raises(CheckpointError, match="dtype cannot be applied to a model that is already"):
        NLA(model, checkpoint=tiny.paths()["av"], dtype=torch.float32)
    with pytest.raises(CheckpointError, match="Expected a path, a Hub id or a TransformersModel"):
        NLA(object(), checkpoint=tiny.paths()["av"])


def test_repr_and_info_load_nothing():
    lazy = NLA(tiny.paths()["av"], sampling=Sampling(max_new_tokens=50))
    assert "not loaded" in repr(lazy)
    info = lazy.info()
    assert info["injection"] == {"operation": "add", "site": "block", "layer": 1, "scale": None}
    assert info["sampling"]["max_new_tokens"] == 50
    assert info["layer"] == 3
    assert not lazy.av.dispatched


def test_reconstruct(nla, residuals):
    thought = nla.explain(residuals[-4:])
    back = nla.reconstruct(thought.text)
    assert back.shape == (4, 128)
    assert back.dtype == torch.float32
    cosines = torch.cosine_similarity(back, residuals[-4:])
    assert cosines.mean() > 0.8
    one = nla.reconstruct(thought.text[0])
    assert one.shape == (128,)
    torch.testing.assert_close(one, back[0], atol=1e-4, rtol=1e-4)
    assert nla.reconstruct([[thought.text[0]], [thought.text[1]]]).shape == (2, 1, 128)
    assert nla.reconstruct([]).shape == (0, 128)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text 0 is empty"),
        (["fine", "  \n"], "text 1 is empty"),
        (3, "got int"),
        ([["a"], ["b", "c"]], "ragged"),
    ],
)
def test_bad_text_for_reconstruct(nla, text, message):
    with pytest.raises(ReconstructionError, match=message):
        nla.reconstruct(text)


def test_no_reconstructor():
    with pytest.raises(CheckpointError, match=r"has no reconstructor. .*NLA\(av, ar="):
        NLA(tiny.paths()["av"]).reconstruct("a text")


def test_controls(nla, residuals):
    controls = nla.controls(4, like=residuals)
    assert controls.null.shape == ()
    assert controls.random.shape == controls.shuffled.shape == (4,)
    assert all(own != other for own, other in enumerate(controls.order))
    assert torch.equal(controls.shuffled.vectors, residuals[list(controls.order)])
    norms = controls.random.vectors.norm(dim=-1)
    torch.testing.assert_close(norms, residuals[:4].norm(dim=-1))
    again = nla.controls(4, like=nla.explain(residuals))
    assert torch.equal(again.random.vectors, controls.random.vectors)
    assert not torch.equal(nla.controls(4, seed=1).random.vectors, controls.random.vectors)
    assert nla.controls(2).shuffled is None
    assert controls.shuffled.text == nla.explain(residuals[list(controls.order)]).text


def test_the_null_control_leaves_the_marker_as_it_is(nla):
    null = nla.controls(1).null
    receipt = null.receipt
    assert receipt.operation == "none"
    assert receipt.norm_before == receipt.norm_after
    assert null.text


def test_bad_controls(nla, residuals):
    with pytest.raises(VerbalizationError, match=r"controls\(0\): expected a whole number"):
        nla.controls(0)
    with pytest.raises(VerbalizationError, match=r"cannot give 3 shuffled ones"):
        nla.controls(3, like=residuals[:2])
    with pytest.raises(VerbalizationError, match=r"cannot give 1 shuffled ones"):
        nla.controls(1, like=residuals[0])
