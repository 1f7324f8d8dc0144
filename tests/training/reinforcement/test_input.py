"""What cannot be trained is refused, or stops the training, and the last good checkpoint stays."""

import math
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from nnsight_nla.checkpoint.sidecar import DATASET_SUFFIX
from nnsight_nla.errors import CheckpointError
from nnsight_nla.training import Files, Lora, Reward, RLWatching, TrainingError
from tests.training.reinforcement.conftest import AR, AV, WATCHING


def copied(folder, source, **changes):
    """A checkpoint with another sidecar."""
    shutil.copytree(source, folder)
    file = folder / "nla_meta.yaml"
    tree = yaml.safe_load(file.read_text("utf-8"))
    for place, value in changes.items():
        section, _, name = place.rpartition("__")
        (tree[section] if section else tree)[name] = value
    file.write_text(yaml.safe_dump(tree, allow_unicode=True), "utf-8")
    return folder


def table(rows, tmp_path, change):
    """The rows' file with another table in it."""
    file = tmp_path / "changed.parquet"
    pq.write_table(change(pq.read_table(rows)), file)
    return file


def refused(trained, tmp_path, error=TrainingError, **options):
    with pytest.raises(error) as caught:
        trained(tmp_path / "rl", **options)
    assert not (tmp_path / "rl").exists()
    assert not (tmp_path / "rl.training").exists()
    return str(caught.value)


def test_a_pair_of_two_targets_is_refused(trained, tmp_path):
    other = copied(tmp_path / "ar", AR, extraction__base_model="you/another-model")
    assert refused(trained, tmp_path, ar=other) == (
        f"{AV} is a verbalizer of nnsight_nla/tiny/weights/target, {other} a reconstructor of "
        "you/another-model (by their sidecars). Train a verbalizer and a reconstructor of one "
        "target and one layer."
    )


def test_a_pair_of_two_layers_is_refused(trained, tmp_path):
    other = copied(tmp_path / "ar", AR, extraction__layer_index=2, critic__extraction_layer_index=2)
    message = refused(trained, tmp_path, ar=other, error=CheckpointError)
    assert message == (
        f"{other / 'nla_meta.yaml'}: layer is 2, the verbalizer's is 3. Use the verbalizer and "
        "reconstructor of one checkpoint."
    )


def test_a_verbalizer_in_place_of_the_reconstructor_is_refused(trained, tmp_path):
    assert "passed as the reconstructor" in refused(trained, tmp_path, ar=AV, error=CheckpointError)


def test_rows_of_another_layer_are_refused(trained, rows, tmp_path):
    file = table(rows, tmp_path, lambda found: found)
    tree = yaml.safe_load((AV / "nla_meta.yaml").read_text("utf-8"))
    tree["extraction"]["layer_index"] = tree["critic"]["extraction_layer_index"] = 1
    del tree["role"]
    beside = file.with_name(file.name + DATASET_SUFFIX)
    beside.write_text(yaml.safe_dump({**tree, "kind": "nla_dataset"}, allow_unicode=True))
    message = refused(trained, tmp_path, rows=file)
    assert "layer" in message
    assert str(file) in message


def test_rows_without_vectors_are_refused(trained, rows, tmp_path):
    file = table(rows, tmp_path, lambda found: found.drop_columns(["activation_vector"]))
    message = refused(trained, tmp_path, rows=file)
    assert message.startswith(f"{file} has no column 'activation_vector'; it has ")


def test_vectors_of_another_width_are_refused(trained, rows, tmp_path):
    def narrow(found):
        vectors = pa.array([each[:64] for each in found["activation_vector"].to_pylist()])
        at = found.column_names.index("activation_vector")
        return found.set_column(at, "activation_vector", vectors)

    file = table(rows, tmp_path, narrow)
    assert "has shape [64], expected [128]" in refused(trained, tmp_path, rows=file)


@pytest.mark.parametrize(("value", "reason"), [(0.0, "is zero"), (math.nan, "has NaN in it")])
def test_a_vector_without_a_direction_is_refused(trained, rows, tmp_path, value, reason):
    def spoiled(found):
        vectors = found["activation_vector"].to_pylist()
        vectors[17] = [value] * 128
        at = found.column_names.index("activation_vector")
        return found.set_column(at, "activation_vector", pa.array(vectors))

    file = table(rows, tmp_path, spoiled)
    message = refused(trained, tmp_path, rows=file, held_out=0)
    assert message.startswith(f"{file}, row 17: activation_vector {reason}")


def test_rows_need_no_labels_and_no_texts(trained, rows, tmp_path):
    file = table(rows, tmp_path, lambda found: found.select(["activation_vector", "doc_id"]))
    found = trained(tmp_path / "rl", rows=file, steps=1)
    assert "eval_fve" in found.log[-1]
    assert not any("grounded" in name for name in found.log[-1])
    message = refused(
        trained, tmp_path / "other", rows=file, watching=replace(WATCHING, grounded=True)
    )
    assert message.startswith(f"{file} does not have the texts that its vectors were read in")


def test_a_group_of_one_is_refused(trained, tmp_path):
    assert "a group of one has nothing to compare" in refused(trained, tmp_path, draws=1)


def test_vllm_draws_for_adapters_of_one_process_only(trained, tmp_path, monkeypatch):
    message = refused(trained, tmp_path, engine="vllm")
    assert message == (
        f"RLSettings(engine='vllm') hands vLLM an adapter before each step, and {AV} is a whole "
        "model. Train adapters on it: RLSettings(lora=Lora(16)), or --lora 16."
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = refused(trained, tmp_path, engine="vllm", lora=Lora(4))
    assert message.startswith("RLSettings(engine='vllm') with 2 processes: each would start a vLLM")
    message = refused(trained, tmp_path, vllm={"max_num_seqs": 4})
    assert message == (
        "vllm={'max_num_seqs': 4} is for RLSettings(engine='vllm'), not for engine='fast'. Pass "
        "that engine too, or leave it out."
    )


def test_a_figure_that_is_not_measured_is_refused(trained, tmp_path):
    message = refused(trained, tmp_path, watching=replace(WATCHING, best="truth"))
    assert message.startswith("best='truth' is not measured in this training. Expected one of ")
    assert "grounded_position" in message
    message = refused(trained, tmp_path, watching=RLWatching(rows=0, best="fve"))
    assert message == (
        "best='fve' is not measured in this training. Nothing is measured: hold out some documents "
        "(held_out=0.05) and measure some rows (RLWatching(rows=64))."
    )
    message = refused(trained, tmp_path, watching=replace(WATCHING, stop=("eval_truth<1",)))
    assert message.startswith("stop names 'eval_truth', which is not measured")
    message = refused(trained, tmp_path, rewards={"kl": Reward(len)})
    assert message == "A reward is called 'kl', as a figure is. Rename it."


def stopped(trained, tmp_path, **options):
    """Train until an error, after the checkpoint of step 2; return its text."""
    with pytest.raises(TrainingError) as caught:
        trained(tmp_path / "rl", **options)
    assert not (tmp_path / "rl").exists()
    work = Files(tmp_path / "rl.training", 1)
    assert work.last().name == "checkpoint-2"
    return str(caught.value)


def test_a_reward_that_becomes_nan_stops_it_and_the_checkpoint_is_of_use(trained, tmp_path):
    calls = []

    def odd(texts, vectors):
        calls.append(len(texts))
        return [math.nan if len(calls) == 3 else 0.0] * len(texts)

    own = {"odd": Reward(odd)}
    message = stopped(trained, tmp_path, rewards=own)
    assert message.startswith("The reward 'odd' is nan at step 3, for the text ")
    # With fewer steps, the last good checkpoint is saved under its final name.
    found = trained(tmp_path / "rl", rewards=own, steps=2)
    assert found.log[-1]["step"] == 2
    assert (found.av / "model.safetensors").is_file()


def test_a_policy_whose_texts_all_fail_stops_it(trained, tmp_path):
    message = refused(trained, tmp_path, max_new_tokens=5, length_margin=0)
    assert message == (
        "At step 1 none of the 16 texts is an explanation (extraction 0; 16 were cut off at 5 "
        "tokens), so their rewards teach nothing. Start from a verbalizer that writes "
        "explanations, allow longer texts (max_new_tokens), or lower av_rate."
    )


def test_a_policy_that_is_wrecked_on_the_way_stops_it(trained, tmp_path, monkeypatch):
    from nnsight_nla.training.reinforcement import loop

    step = loop.Loop._step

    def wrecked(self, number):
        if number == 2:
            with torch.no_grad():
                for weight in self.pair.av_weights.values():
                    weight.mul_(-1)
        return step(self, number)

    monkeypatch.setattr(loop.Loop, "_step", wrecked)
    message = stopped(trained, tmp_path)
    assert message.startswith("At step 3 none of the 16 texts is an explanation (extraction 0;")


def test_a_gradient_that_is_no_number_stops_it(trained, tmp_path, monkeypatch):
    from nnsight_nla.training.reinforcement import loop

    advantages, calls = loop.advantages, []

    def spoiled(rewards):
        calls.append(rewards)
        return advantages(rewards) * (math.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(loop, "advantages", spoiled)
    assert stopped(trained, tmp_path) == (
        "At step 3 the norm of the av's gradient is nan. Lower av_rate (now 0.001), or train in "
        "float32."
    )


def test_a_full_disk_keeps_the_last_checkpoint(trained, tmp_path, monkeypatch):
    from nnsight_nla.training.reinforcement import state

    save, calls = state.save_file, []

    def full(*arguments, **options):
        calls.append(arguments)
        if len(calls) > 2:  # Verbalizer and reconstructor of step 2.
            raise OSError(28, "No space left on device")
        save(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(state, "save_file", full)
        message = stopped(trained, tmp_path)
    assert message == (
        f"The disk of {tmp_path / 'rl.training'} is full: checkpoint-4 could not be written. Free "
        "some space. Then rerun with the original options to resume."
    )
    assert trained(tmp_path / "rl").log[-1]["step"] == 4
