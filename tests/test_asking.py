"""An oracle with a question, in traces, readings, experiments, pickles and remote requests."""

import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from nnsight import TransformersModel

from nnsight_nla import NLA, Checkpoint, Explanation, Sampling, tiny
from nnsight_nla.checkpoint.checkpoint import ORACLE_TEMPLATE
from nnsight_nla.errors import NLAError, VerbalizationError
from nnsight_nla.experiments import logit_difference, patch
from nnsight_nla.remote.pickling import receive_capture
from nnsight_nla.remote.wire import RemoteNLA, RemoteOracle

D = 128
QUESTION = "What is the tone?"
TEXT = "People in Paris speak"


@pytest.fixture(scope="module")
def oracle():
    """An oracle that was never trained: the target itself."""
    checkpoint = Checkpoint(
        layer=3, layers=(3, 4), d_model=D, template=ORACLE_TEMPLATE, marker="?",
        base_model="nnsight_nla/tiny/weights/target",
    )  # fmt: skip
    target = TransformersModel(str(tiny.paths()["target"]), task="text-generation")
    return NLA(target, checkpoint=checkpoint, sampling=Sampling(max_new_tokens=3))


def test_in_a_trace_patched_and_batched(oracle, model):
    with model.trace([TEXT, "What a lovely day! The cow lives"]):
        residual = oracle.layer(model).output
        asked = oracle.ask(residual[:, -3:], QUESTION)
        residual[0, -1] = 1.0
        patched = oracle.ask(residual[0, -1], "Is it?", choices=["Yes", "No"])
    assert asked.shape == (2,)
    assert asked.vectors.shape == (2, 3, D)
    assert asked.text == [oracle.ask(each, QUESTION).text for each in asked.vectors]
    assert patched.vectors.tolist() == [[1.0] * D]
    assert sum(patched.probabilities.values()) == pytest.approx(1)


def test_the_layer_of_an_answer(oracle, model):
    with model.trace(TEXT):
        deeper = oracle.ask(oracle.layer(model, 4).output[0, -1:], QUESTION, layer=4)
    assert deeper.origin.layer == 4
    assert deeper.receipt.layer_convention.startswith("output of block 4")
    assert not any("trained on" in each for each in deeper.warnings)


def test_explain_of_an_asking_oracle_is_ask(oracle):
    asking = oracle.asking(QUESTION)
    vectors = torch.randn(2, 2, D, generator=torch.Generator().manual_seed(0))
    explained = asking.explain(vectors)
    assert explained.text == oracle.ask(vectors[..., None, :], QUESTION).text
    assert explained.questions == [[QUESTION] * 2] * 2
    assert asking.explain_nothing().text == explained.trust[0][0].without
    assert asking.prompt.text.count(QUESTION) == 1
    assert oracle.question is None


def test_read_and_experiments_take_a_question(oracle, model):
    reading = oracle.read(model, TEXT, question=QUESTION)
    assert len(reading.to_pandas()) == 4
    for choices in (None, ["French", "Italian"]):
        asked = {"question": QUESTION, "choices": choices}
        one, other = oracle.read(model, [TEXT, "The cow"], **asked)
        assert one == oracle.read(model, TEXT, **asked)
        assert other == oracle.read(model, "The cow", **asked)
    options = {"layers": [3], "positions": [-1], "question": QUESTION}
    sweep = patch(
        model, oracle, TEXT, "People in Rome speak",
        metric=logit_difference(" French", " Italian"), **options,
    )  # fmt: skip
    with model.trace("People in Rome speak"):
        own = oracle.ask(oracle.layer(model).output[0, -1], QUESTION)
    assert own.text in str(sweep.to_pandas().iloc[0].to_dict())


def test_answers_are_compared(oracle):
    vectors = torch.eye(D)[:3]
    before, after = oracle.ask(vectors, QUESTION), oracle.ask(vectors.flip(0), QUESTION)
    compared = oracle.compare(before, after)
    assert compared.cosine == pytest.approx(1 / 3)
    with pytest.raises(VerbalizationError, match="384 entries in all slots together, after of 128"):
        oracle.compare(before, oracle.ask(vectors[:1], QUESTION))


def test_a_pickle_keeps_questions_and_answers(oracle):
    asked = oracle.ask(torch.eye(D)[:2, None], [QUESTION, "What is it?"], choices=["Yes", "No"])
    probabilities = asked.probabilities
    copy = pickle.loads(pickle.dumps(asked))
    assert isinstance(copy, Explanation)
    assert (copy.questions, copy.probabilities) == (asked.questions, probabilities)


def answers(oracle):
    """Answers of every form: ragged, nested, sampled, of choices, with an error, and none."""
    vectors = torch.randn(4, D, generator=torch.Generator().manual_seed(1))
    yield oracle.ask([vectors, vectors[:1], vectors[1:3]], [QUESTION, "What?", QUESTION])
    yield oracle.ask(vectors.reshape(2, 1, 2, D), QUESTION, choices=["Yes", "No"], layer=4)
    yield oracle.ask(vectors[:, None].bfloat16(), QUESTION, tokens=list("abcd"))[1:]
    sampling = Sampling(temperature=1.0, max_new_tokens=3)
    yield oracle.ask(vectors, QUESTION, samples=2, sampling=sampling)
    yield oracle.ask(torch.stack([vectors[:2], torch.zeros(2, D)]), QUESTION)
    yield oracle.ask(vectors[:0].reshape(0, 2, D), [])


def test_a_file_of_answers_comes_back_without_a_model(oracle, tmp_path):
    path = tmp_path / "answers.parquet"
    for asked in answers(oracle):
        asked.to_parquet(path)
        found = Explanation.from_parquet(path)
        assert json.dumps(found.to_dict()) == json.dumps(asked.to_dict())
        for name in ("shape", "questions", "trust", "errors", "warnings", "tokens", "origin"):
            assert getattr(found, name) == getattr(asked, name), name
        assert str(found.vectors) == str(asked.vectors)
        for row in asked.rows:
            ours = asked.capture.row(row)
            theirs = found.capture.row(asked.rows.index(row))
            assert theirs.dtype == ours.dtype
            assert torch.equal(theirs, ours)
        if not asked.errors:
            assert found.samples == asked.samples
            assert (found.probabilities, found.mass) == (asked.probabilities, asked.mass)
        assert found.capture.asked.layer == asked.capture.asked.layer
        assert repr(found) == repr(asked)


def test_a_file_of_answers_that_is_damaged(oracle, tmp_path):
    path = tmp_path / "answers.parquet"
    oracle.ask(torch.eye(D)[:2, None], QUESTION, choices=["Yes", "No"]).to_parquet(path)
    table = pq.read_table(path)
    assert table["activation_vectors"].to_pylist()[1] == torch.eye(D)[1:2].tolist()
    for name, values, message in (
        ("slots", [1, 2], "do not have as many vectors as its slots say"),
        ("question", [QUESTION, None], "row 1 has no question"),
        ("probabilities", [[("Yes", 1.0)]] * 2, "it has probabilities of"),
    ):
        place = table.schema.get_field_index(name)
        field = table.schema.field(place)
        pq.write_table(table.set_column(place, field, pa.array(values, field.type)), path)
        with pytest.raises(NLAError, match=f"answers.parquet .*{message}"):
            Explanation.from_parquet(path)


class There:
    """The stand-in of the oracle on a server, outside of a trace."""

    def __init__(self, monkeypatch, uid):
        self.monkeypatch, self.nla = monkeypatch, RemoteOracle(uid, 3, D, (3, 4))

    def __getattr__(self, name):
        def call(*args, **options):
            with self.monkeypatch.context() as patched:
                patched.setattr("nnsight.save", lambda value: value)
                return getattr(self.nla, name)(*args, **options)

        return call


@pytest.fixture
def there(oracle, monkeypatch):
    return There(monkeypatch, oracle.uid)


def back(handle):
    """The handle that the client gets."""
    made = handle.capture.__reduce__()[1]
    return Explanation.of(receive_capture(*made), handle.shape)


def test_a_remote_answer_is_that_of_the_client(oracle, there):
    vectors = torch.randn(2, 3, D, generator=torch.Generator().manual_seed(1))
    handle = there.ask(vectors, QUESTION, layer=4)
    assert (handle.shape, handle.vectors.shape) == ((2,), (2, 3, D))
    assert back(handle).text == oracle.ask(vectors, QUESTION, layer=4).text
    ragged = [vectors[0], vectors[1, :1]]
    assert back(there.ask(ragged, QUESTION)).text == oracle.ask(ragged, QUESTION).text
    one = there.ask(vectors[0, 0], QUESTION, choices=["Yes", "No"])
    assert (
        back(one).probabilities
        == oracle.ask(vectors[0, 0], QUESTION, choices=["Yes", "No"]).probabilities
    )


def test_what_a_remote_block_refuses(nla, there):
    with pytest.raises(ValueError, match="answers questions"):
        there.explain(torch.ones(D))
    with pytest.raises(ValueError, match="cannot be asked"):
        RemoteNLA(nla.uid, 3, D).ask(torch.ones(D), QUESTION)
    with pytest.raises(ValueError, match="trained on 3, 4"):
        there.ask(torch.ones(D), QUESTION, layer=2)
    with pytest.raises(ValueError, match="slots, 128"):
        there.ask(torch.ones(3), QUESTION)


def test_a_bad_question_of_a_remote_run_is_an_error_of_its_rows(there):
    handle = back(there.ask(torch.ones(2, 1, D), ""))
    assert "is empty" in handle.errors[0,]
