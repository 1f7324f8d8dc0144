"""NLA and handles in ordinary pickles: in this process, in another, and away from a live model."""

import pickle
import subprocess
import sys

import pytest
import torch

from nnsight_nla import NLA, VerbalizationError, tiny
from tests.helpers.checkpoints import copied, edit_sidecar
from tests.helpers.processes import run

ELSEWHERE = """
import pickle, sys
thought, nla = pickle.load(open(sys.argv[1], "rb"))
print(repr(nla))
print(thought.text)
print(thought.receipt.operation, tuple(thought.vectors.shape), thought.finish)
print(thought.errors, thought.warnings)
try:
    print(nla.explain(thought.vectors).text == thought.text)
except Exception as error:
    print(type(error).__name__, error)
"""


def elsewhere(tmp_path, *values) -> list[str]:
    """Unpickle in a new process and show what is there."""
    file = tmp_path / "values.pkl"
    file.write_bytes(pickle.dumps(values))
    done = run(ELSEWHERE, file)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_the_same_process_gets_the_same_nla(nla, residuals):
    thought = nla.explain(residuals[-2:])
    again, twin = pickle.loads(pickle.dumps((thought, nla)))
    assert twin is nla
    assert not again.resolved
    assert again.text == thought.text
    assert pickle.loads(pickle.dumps(thought[1])).text == thought.text[1]


def test_another_process_rebuilds_the_nla_and_keeps_the_texts(residuals, tmp_path):
    nla = NLA(tiny.paths()["av"], dtype=torch.float32)
    thought = nla.explain(residuals[-1])
    text = thought.text
    shown = elsewhere(tmp_path, thought, nla)
    assert shown[0] == f"{nla!r}".replace(" loaded>", " not loaded>")
    assert "\n".join(shown[1:-3]) == text
    assert shown[-3] == "add (128,) tag"
    assert shown[-1] == "True"


def test_a_handle_that_waits_is_verbalized_where_it_went(residuals, tmp_path):
    nla = NLA(tiny.paths()["av"], dtype=torch.float32)
    waiting = nla.explain(residuals[-1])
    shown = elsewhere(tmp_path, waiting, nla)
    assert not waiting.resolved
    assert "\n".join(shown[1:-3]) == waiting.text


def test_an_nla_on_a_live_model_says_so_when_its_text_is_needed(model, residuals, tmp_path):
    nla = NLA(model, checkpoint=tiny.paths()["av"])
    thought = nla.explain(residuals[-1])
    text = thought.text
    shown = elsewhere(tmp_path, thought, nla)
    assert shown[0] == "<NLA of another process, layer=3>"
    assert text.splitlines()[0] in shown
    assert "VerbalizationError This NLA was built on a live model" in shown[-1]
    assert "NLA(path_or_id)" in shown[-1]


def test_equal_arguments_pickle_to_equal_bytes_in_every_process(tmp_path):
    """What a data set's fingerprint needs: no random name in the pickle."""
    script = (
        "import pickle, hashlib; from nnsight_nla import NLA, tiny;"
        "print(hashlib.sha256(pickle.dumps(NLA(tiny.paths()['av']))).hexdigest())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(seen) == 1


def test_what_comes_back_never_raises_on_a_value(nla, residuals):
    from nnsight_nla.remote.pickling import receive_capture, receive_handle

    options = {"shape": (2,), "samples": 2, "sampling": None, "tokens": ["a"], "positions": None}
    capture = receive_capture(nla.uid, "a capture", residuals[:2], options)
    handle = receive_handle(capture, range(2), (2,))
    assert "would give the same text 2 times" in handle.errors[0,]
    orphan = receive_handle(
        receive_capture("no such NLA", "another", residuals[:2], options), range(2), (2,)
    )
    assert torch.equal(orphan.vectors, residuals[:2])
    with pytest.raises(VerbalizationError, match=r"nla.explain\(thought.vectors\)"):
        _ = orphan.text


def test_a_request_carries_no_path_of_this_machine(tmp_path):
    """A checkpoint that a remote block names has its values, not where they were found."""
    import io

    from nnsight.intervention.serialization import CustomCloudPickler

    from nnsight_nla import Checkpoint
    from nnsight_nla.checkpoint.origin import Origin

    folder = tmp_path / "private folder"
    copied(tiny.paths()["av"], folder)
    (folder / "nla_calibration.json").unlink()  # It is of the checkpoint before the edit.
    edit_sidecar(folder, lambda tree: tree["extraction"].update(base_model=f"{folder}/the-base"))
    nla = NLA(folder)
    assert "private folder" in nla.checkpoint.base_model
    thought = nla.explain(torch.ones(128))
    origin = Origin.of(nla.checkpoint)
    assert "private folder" in origin.model + str(origin.source)
    for value in (nla.checkpoint, nla, thought, nla.sampling, nla.checkpoint.injection, origin):
        sent = io.BytesIO()
        CustomCloudPickler(sent).dump(value)
        assert b"private folder" not in sent.getvalue()
    sent = io.BytesIO()
    CustomCloudPickler(sent).dump(nla.checkpoint)
    there = pickle.loads(sent.getvalue())
    assert (there.layer, there.base_model, there.source) == (3, "the-base", {})
    assert there.template == nla.checkpoint.template
    assert pickle.loads(pickle.dumps(nla.checkpoint)) == nla.checkpoint
    assert isinstance(pickle.loads(pickle.dumps(nla.checkpoint)), Checkpoint)
