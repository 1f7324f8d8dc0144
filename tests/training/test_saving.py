"""A checkpoint's folder is complete or absent, and never replaces anything but a checkpoint."""

import pytest
import torch

from nnsight_nla.checkpoint.checkpoint import Checkpoint
from nnsight_nla.training import Reconstructor, TrainingError, save_reconstructor, save_verbalizer
from tests.helpers.published import tokenizer
from tests.training.test_training import LAYER, WIDTH, random_model


@pytest.fixture(scope="module")
def live():
    return tokenizer()


@pytest.fixture(scope="module")
def checkpoint(live):
    from nnsight_nla.training import describe

    return describe(live, layer=LAYER, d_model=WIDTH)


@pytest.fixture(scope="module")
def model(live):
    return random_model("Qwen3", live, num_hidden_layers=2)


def test_a_folder_that_is_not_a_checkpoint_is_not_replaced(model, live, checkpoint, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(TrainingError) as caught:
            save_verbalizer(folder, model, live, checkpoint)
        assert str(caught.value) == (
            f"{folder} exists and is not a checkpoint. Choose another name, or remove it."
        )
    assert (tmp_path / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_is_replaced_by_a_complete_one_only(model, live, checkpoint, tmp_path):
    folder = tmp_path / "av"
    folder.mkdir()  # An empty folder is nothing to lose.
    save_verbalizer(folder, model, live, checkpoint, trained_on=["old"])
    old = sorted(each.name for each in folder.iterdir())

    class Interrupted:
        def save_pretrained(self, part):
            assert folder.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_verbalizer(folder, model, Interrupted(), checkpoint, trained_on=["new"])
    assert sorted(each.name for each in folder.iterdir()) == old
    assert "old" in (folder / "nla_meta.yaml").read_text()
    save_verbalizer(folder, model, live, checkpoint, trained_on=["new"])
    assert "new" in (folder / "nla_meta.yaml").read_text()
    assert [each.name for each in tmp_path.iterdir()] == ["av"]


def test_a_full_disk_ends_in_the_advice(model, live, checkpoint, tmp_path):
    class Full:
        def save_pretrained(self, part):
            raise OSError(28, "No space left on device")

    with pytest.raises(TrainingError) as caught:
        save_verbalizer(tmp_path / "av", model, Full(), checkpoint, advice="Then rerun.")
    assert str(caught.value) == (
        f"The disk of {tmp_path} is full: av could not be written. Free some space. Then rerun."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_final_norm_is_saved_and_gone_again(live, checkpoint, tmp_path, dtype):
    from safetensors.torch import load_file

    reconstructor = Reconstructor(random_model("Qwen3", live, num_hidden_layers=3), LAYER)
    save_reconstructor(tmp_path / "ar", reconstructor, live, checkpoint, dtype=dtype)
    stored = load_file(tmp_path / "ar" / "model.safetensors")
    assert stored["model.norm.weight"].dtype == (dtype or torch.float32)
    assert isinstance(reconstructor.model.model.norm, torch.nn.Identity)
    assert Checkpoint.load(tmp_path / "ar").layer == LAYER
