"""Opening the AV and the AR from what a caller passes; no weights are loaded."""

import pickle

import pytest
import torch
from nnsight import TransformersModel
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from nnsight_nla import NLA, Checkpoint, CheckpointError, Injection, NLAWarning, tiny
from nnsight_nla.models.memory import Memory
from nnsight_nla.models.open import OpenOptions, open_reconstructor, open_verbalizer
from tests.helpers.checkpoints import copied, edit_json, edit_sidecar

PATHS = tiny.paths()
K = 3


def options(**more) -> OpenOptions:
    given = {"target": None, "remote": False, "memory": Memory(), "load": {"dtype": torch.float32}}
    return OpenOptions(**{**given, **more})


def opened(source=PATHS["av"], where=None, *, checkpoint=None, peft=None):
    return open_verbalizer(source, where or options(), checkpoint=checkpoint, peft=peft)


def blocks(runtime) -> int:
    return len(runtime.model.model.layers)


class TestVerbalizer:
    def test_is_read_without_its_weights(self):
        found = opened()
        assert not found.runtime.loaded
        assert found.runtime.role == "verbalizer"
        assert found.checkpoint.layer == K
        marker = found.prompt.marker_position
        assert found.prompt.ids[marker] == found.checkpoint.marker_id
        assert found.checkpoint.left_id == found.prompt.ids[marker - 1]
        assert found.checkpoint.source["tokenizer"] == str(PATHS["av"])

    def test_missing_neighbours_are_filled_in_and_say_where_from(self):
        full = Checkpoint.load(PATHS["av"])
        bare = Checkpoint(**{**vars(full), "left_id": None, "right_id": None, "source": {}})
        found = opened(checkpoint=bare).checkpoint
        assert (found.left_id, found.right_id) == (full.left_id, full.right_id)
        assert found.source["left_id"] == "the live tokenizer"
        assert found.source["template"] == "the caller"

    def test_checkpoint_may_be_a_path_or_an_injection(self):
        assert opened(checkpoint=PATHS["av"]).checkpoint == opened().checkpoint
        injection = Injection(layer=2, scale=3.0)
        assert opened(checkpoint=injection).checkpoint.injection == injection
        with pytest.raises(CheckpointError, match=r"^checkpoint=5: expected a Checkpoint, an Inj"):
            opened(checkpoint=5)

    def test_a_live_model_is_used_as_it_is_and_never_unloaded(self, pair):
        where = options(load={})
        found = opened(pair[1].av, where, checkpoint=PATHS["av"])
        assert found.runtime.model is pair[1].av
        pair[1].av.dispatch()
        where.memory.unload()
        assert found.runtime.loaded

    def test_one_that_was_opened_from_a_path_is_unloaded(self):
        where = options()
        found = opened(where=where)
        with found.runtime.use():
            assert found.runtime.loaded
        where.memory.unload()
        assert not found.runtime.loaded

    def test_remote(self):
        found = opened(where=options(remote=True))
        assert found.runtime.remote
        with found.runtime.use() as model:
            assert not model.dispatched


class TestReconstructor:
    def test_is_read_without_its_weights(self):
        found = open_reconstructor(PATHS["ar"], options(), opened().checkpoint)
        assert not found.runtime.loaded
        assert found.runtime.role == "reconstructor"
        assert found.layout.head.shape == (128, 128)
        assert blocks(found.runtime) == K + 1
        assert len(found.tokenizer) == len(opened().runtime.model.tokenizer)

    def test_a_full_base_is_cut_here_and_not_on_a_host(self):
        checkpoint = opened().checkpoint
        with pytest.warns(NLAWarning, match=r"identity as head, .* only a lower bound"):
            here = open_reconstructor(PATHS["target"], options(), checkpoint)
        assert blocks(here.runtime) == K + 1
        with pytest.warns(NLAWarning, match="only a lower bound"):
            there = open_reconstructor(PATHS["target"], options(remote=True), checkpoint)
        assert blocks(there.runtime) == 6

    def test_one_of_another_layer_is_refused(self):
        checkpoint = Checkpoint(**{**vars(opened().checkpoint), "layer": 2})
        with pytest.raises(CheckpointError, match="verbalizer and reconstructor of one checkpoint"):
            open_reconstructor(PATHS["ar"], options(), checkpoint)


class TestRole:
    """A reconstructor is not a verbalizer, nor the other way round, however it is passed."""

    @pytest.mark.parametrize(
        "how",
        [
            lambda folder: opened(folder),
            lambda folder: opened(str(folder)),
            lambda folder: opened(
                TransformersModel(str(folder), task="text-generation"), options(load={})
            ),
            lambda folder: opened(PATHS["target"], checkpoint=PATHS["av"], peft=str(folder)),
        ],
        ids=["path", "string", "live", "peft"],
    )
    def test_a_reconstructor_as_the_verbalizer(self, how):
        message = (
            rf"^{PATHS['ar']} is a reconstructor \(role in nla_meta\.yaml\), passed as the "
            r"verbalizer\. Pass it as ar=: NLA\('the verbalizer', ar='the reconstructor'\)\.$"
        )
        with pytest.raises(CheckpointError, match=message):
            how(PATHS["ar"])

    @pytest.mark.parametrize("word", ["critic", "reconstructor"])
    def test_in_other_dialects(self, tmp_path, word):
        folder = copied(PATHS["av"], tmp_path / "av")
        edit_sidecar(folder, lambda tree: tree.update(role=word))
        with pytest.raises(CheckpointError, match=r"is a reconstructor \(role in nla_meta\.yaml\)"):
            opened(folder)

    @pytest.mark.parametrize("file", ["value_head.safetensors", "ar_meta.json"])
    def test_by_its_files_where_the_sidecar_does_not_say(self, tmp_path, file):
        folder = edit_sidecar(copied(PATHS["av"], tmp_path / "av"), lambda tree: tree.pop("role"))
        opened(folder)
        (folder / file).write_bytes(b"{}")
        with pytest.raises(CheckpointError, match=rf"is a reconstructor \({file}\)"):
            opened(folder)
        edit_sidecar(folder, lambda tree: tree.update(role="av"))
        opened(folder)  # What the sidecar says counts: training tools leave heads behind.

    @pytest.mark.parametrize("role", ["av", "actor", "verbalizer"])
    def test_a_verbalizer_as_the_reconstructor(self, tmp_path, role):
        folder = edit_sidecar(
            copied(PATHS["av"], tmp_path / "av"), lambda tree: tree.update(role=role)
        )
        with pytest.raises(CheckpointError, match=r"is a verbalizer .* Pass it as av=:"):
            NLA(PATHS["av"], ar=folder)


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """An adapter on the tiny target that is no identity, with a sidecar and without a tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    base = AutoModelForCausalLM.from_pretrained(PATHS["target"], dtype=torch.float32)
    get_peft_model(base, config).save_pretrained(folder)
    (folder / "nla_meta.yaml").write_bytes((PATHS["av"] / "nla_meta.yaml").read_bytes())
    return folder


class TestBaseOfAnAdapter:
    """Where an adapter names its base by a path, the folder that one works in does not matter."""

    def placed(self, root, lora, named):
        """A project: ``models/base``, and ``runs/lora`` which names it."""
        copied(PATHS["target"], root / "models" / "base")
        folder = copied(lora, root / "runs" / "lora")
        edit_json(folder, "adapter_config.json", base_model_name_or_path=named)
        return folder

    @pytest.mark.parametrize("named", ["models/base", "./models/base", "../../models/base"])
    @pytest.mark.parametrize("cwd", [".", "models", "/"])
    def test_a_relative_path(self, tmp_path, lora, named, cwd, monkeypatch):
        folder = self.placed(tmp_path, lora, named)
        monkeypatch.chdir(tmp_path / cwd)
        found = opened(folder)
        assert found.runtime.base == str((tmp_path / "models" / "base").resolve())
        assert found.runtime.name == str(folder)
        assert found.checkpoint.source["tokenizer"] == found.runtime.base

    def test_two_folders_that_it_may_be(self, tmp_path, lora, monkeypatch):
        folder = self.placed(tmp_path, lora, "models/base")
        copied(PATHS["target"], tmp_path / "elsewhere" / "models" / "base")
        monkeypatch.chdir(tmp_path / "elsewhere")
        with pytest.raises(CheckpointError, match=r"which may be .* or .*peft="):
            opened(folder)
        found = opened(tmp_path / "models" / "base", peft=str(folder), checkpoint=PATHS["av"])
        assert found.runtime.base == str(tmp_path / "models" / "base")

    def test_no_folder_at_all(self, tmp_path, lora):
        folder = self.placed(tmp_path, lora, "/no/such/base")
        with pytest.raises(
            CheckpointError, match=r"names its base model '/no/such/base', and ther"
        ):
            opened(folder)

    def test_a_hub_id_stays_one(self, tmp_path, lora):
        folder = self.placed(tmp_path, lora, "some/base")
        with pytest.raises(CheckpointError, match=r"some/base"):
            opened(folder)

    def test_what_training_stores_is_absolute(self, tmp_path, monkeypatch):
        """A model that is loaded by a relative path remembers the absolute one."""
        from nnsight_nla.models.weights import load_module

        copied(PATHS["target"], tmp_path / "base")
        monkeypatch.chdir(tmp_path)
        model = load_module(AutoModelForCausalLM, "base")
        get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained("lora")
        (tmp_path / "lora" / "nla_meta.yaml").write_bytes(
            (PATHS["av"] / "nla_meta.yaml").read_bytes()
        )
        monkeypatch.chdir("/")
        assert opened(tmp_path / "lora").runtime.base == str(tmp_path / "base")

    def test_its_tokenizer_is_that_of_the_base(self, tmp_path, lora, pair):
        """The sidecar's base is a Hub id that cannot be reached; the adapter's is a folder."""
        folder = copied(lora, tmp_path / "lora")
        edit_sidecar(folder, lambda tree: tree["extraction"].update(base_model="some/where"))
        for peft, source in ((None, folder), (str(folder), PATHS["target"])):
            found = opened(source, peft=peft)
            assert found.checkpoint.source["tokenizer"] == str(PATHS["target"])
            assert found.prompt == pair[1].prompt

    def test_its_own_tokenizer_comes_first(self, tmp_path, lora):
        folder = copied(lora, tmp_path / "lora")
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (folder / file).write_bytes((PATHS["av"] / file).read_bytes())
        for peft, source in ((None, folder), (str(folder), PATHS["target"])):
            assert opened(source, peft=peft).checkpoint.source["tokenizer"] == str(folder)


class TestOptionsOfEach:
    def test_a_live_verbalizer_and_a_reconstructor_with_options(self, pair):
        nla = NLA(
            pair[1].av, checkpoint=PATHS["av"], ar=PATHS["ar"], ar_options={"dtype": "bfloat16"}
        )
        nla.reconstruct("About Rome.")
        assert nla.ar._module.dtype == torch.bfloat16
        assert nla.av._module.dtype == torch.float32

    def test_they_go_over_what_is_shared(self):
        nla = NLA(
            PATHS["av"], ar=PATHS["ar"], dtype="float32", ar_options={"dtype": "bfloat16"},
            av_options={"attn_implementation": "eager"},
        )  # fmt: skip
        nla.explain(torch.ones(128)).text  # noqa: B018
        nla.reconstruct("About Rome.")
        assert (nla.av._module.dtype, nla.ar._module.dtype) == (torch.float32, torch.bfloat16)
        assert nla.av._module.config._attn_implementation == "eager"
        assert nla.ar._module.config._attn_implementation != "eager"
        again = pickle.loads(pickle.dumps(nla.spec))
        assert NLA(**again).ar.kwargs["dtype"] == "bfloat16"

    def test_where_they_cannot_be_applied(self, pair):
        live = pair[1].av
        for options, message in (
            ({"dtype": "bfloat16"}, r"^dtype cannot be applied to a model .*ar_options=\{\.\.\.\}"),
            ({"av_options": {"dtype": "bfloat16"}}, r"^dtype cannot be applied to a model that is"),
        ):
            with pytest.raises(CheckpointError, match=message):
                NLA(live, checkpoint=PATHS["av"], ar=PATHS["ar"], **options)
        with pytest.raises(CheckpointError, match="but there is no reconstructor"):
            NLA(PATHS["av"], ar_options={"dtype": "bfloat16"})
        with pytest.raises(CheckpointError, match=r"^dtype='float23'"):
            NLA(PATHS["av"], ar=PATHS["ar"], ar_options={"dtype": "float23"})


@pytest.mark.parametrize("argument", ["av", "ar", "checkpoint", "peft"])
def test_a_mistyped_folder_is_said_to_be_absent(tmp_path, monkeypatch, argument):
    """``owner/name`` may be a folder: what is said first is that there is none of that name."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints" / "my-av").mkdir(parents=True)
    given = {"av": PATHS["av"], argument: "checkpoints/my-vv"}
    absent = tmp_path / "checkpoints"
    said = rf"[Tt]here is no folder {absent / 'my-vv'}; did you mean {absent / 'my-av'}\?"
    with pytest.raises(CheckpointError, match=said):
        NLA(**given)


@pytest.mark.parametrize("argument", ["av", "ar"])
def test_a_plain_transformers_model_is_to_be_wrapped(argument, pair):
    pair[1].av.dispatch()
    module = pair[1].av._module
    with pytest.raises(CheckpointError) as no:
        NLA(**{"av": PATHS["av"], argument: module})
    assert str(no.value) == (
        "Expected a path, a Hub id or a TransformersModel with a tokenizer, got Qwen3ForCausalLM. "
        "Wrap it: nnsight.TransformersModel(model, tokenizer=tokenizer, task='text-generation')."
    )
    tokenizer = pair[1].av.tokenizer
    wrapped = TransformersModel(module, tokenizer=tokenizer, task="text-generation")
    assert NLA(wrapped, checkpoint=PATHS["av"]).checkpoint.layer == K
    for other in (3, {}, [PATHS["av"]]):
        with pytest.raises(CheckpointError, match=rf"tokenizer, got {type(other).__name__}\.$"):
            NLA(**{"av": PATHS["av"], argument: other})
