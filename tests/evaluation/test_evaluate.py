"""The figures of an evaluation: by hand on the tiny pair, and what is refused."""

import json
import re

import pytest
import torch

from nnsight_nla import NLA, Baseline, NLAError, Sampling, tiny
from nnsight_nla.checkpoint.reply import wrap
from nnsight_nla.evaluation.controls import Controls
from nnsight_nla.evaluation.evaluate import evaluate, retrieval, round_trip, texts_of
from tests.helpers import plain

SHORT = Sampling(max_new_tokens=50)
ROWS = 3


@pytest.fixture(scope="module")
def vectors(pair):
    model, nla = pair
    with model.trace("What a lovely day! People in Paris speak"):
        found = nla.layer(model).output[0].detach().save()
    return found[[-1, -2, -4]].clone()


@pytest.fixture(scope="module")
def labels():
    return ["About Paris.", "About the people in Paris; cheerful tone.", "About the day."]


@pytest.fixture(scope="module")
def figures(pair, vectors, labels):
    return evaluate(pair[1], vectors, labels)


@pytest.fixture(scope="module")
def said(pair, vectors, labels):
    """The texts that the figures are made of, each kind in the order of the vectors."""
    _, nla = pair
    controls = nla.controls(ROWS, like=vectors)
    return {
        "explanation": nla.explain(vectors).text,
        "null": [controls.null.text] * ROWS,
        "random": controls.random.text,
        "shuffled": controls.shuffled.text,
        "label": labels,
    }


def cosines(nla, texts, vectors) -> torch.Tensor:
    return torch.cosine_similarity(nla.reconstruct(texts), vectors, dim=-1)


def test_cosine_and_fve_are_those_of_each_kind_of_text(nla, vectors, figures, said):
    expected = {name: cosines(nla, texts, vectors).mean().item() for name, texts in said.items()}
    assert figures["cosine"] == pytest.approx(expected, abs=1e-4)
    fve = {name: 1 - 2 * (1 - value) / nla.baseline.value for name, value in expected.items()}
    assert figures["fve"] == pytest.approx(fve, abs=1e-3)
    assert figures["baseline"] == nla.baseline.to_dict()
    assert figures["cosine"]["explanation"] > figures["cosine"]["random"] + 0.2


def test_retrieval_is_the_share_of_texts_nearest_to_their_own_vector(nla, vectors, figures, said):
    back = nla.reconstruct(said["explanation"])
    table = torch.stack([torch.cosine_similarity(one[None], vectors) for one in back])
    expected = (table.argmax(dim=1) == torch.arange(ROWS)).float().mean().item()
    assert figures["retrieval"] == pytest.approx(expected)
    # Texts of other rows are nearest to those rows' vectors, never to their own.
    order = [1, 2, 0]
    assert retrieval(nla, nla.explain(vectors[order]), vectors) <= 1 - expected


def test_says_is_the_likelihood_of_the_labels_on_a_plain_model(nla, vectors, labels, figures):
    model, tokenizer, prompt = plain.load(tiny.paths()["av"])
    marker = prompt.index(tokenizer.convert_tokens_to_ids("㈎"))
    controls = nla.controls(ROWS, like=vectors)

    def likelihood(vector, label) -> float:
        def write(module, args, output):
            here = output[:, marker]
            output = output.clone()
            output[:, marker] = here + here.norm() * vector / vector.norm()
            return output

        ids = tokenizer(wrap(label), add_special_tokens=False)["input_ids"]
        hook = None if vector is None else model.model.layers[1].register_forward_hook(write)
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        if hook is not None:
            hook.remove()
        return logits.log_softmax(-1)[range(len(ids)), ids].mean().item()

    kinds = {
        "explanation": vectors,
        "null": [None] * ROWS,
        "random": controls.random.vectors,
        "shuffled": vectors[list(controls.order)],
    }
    expected = {
        name: sum(map(likelihood, written, labels)) / ROWS for name, written in kinds.items()
    }
    assert figures["says"] == pytest.approx(expected, abs=1e-3)


def test_the_other_figures(figures, said):
    assert figures["rows"] == ROWS
    assert (figures["extraction"], figures["truncated"]) == (1.0, 0.0)
    assert set(figures["fve"]) == set(said)
    json.dumps(figures, allow_nan=False)


def test_replies_that_are_cut_off_count_as_a_cosine_of_0(nla, vectors, monkeypatch):
    monkeypatch.setattr(nla, "sampling", Sampling(max_new_tokens=14))
    found = evaluate(nla, vectors)
    assert (found["extraction"], found["truncated"], found["retrieval"]) == (0.0, 1.0, 0.0)
    names = ("explanation", "null", "random", "shuffled")
    assert found["cosine"] == dict.fromkeys(names, 0.0)
    fve = 1 - 2 / nla.baseline.value
    assert found["fve"] == pytest.approx(dict.fromkeys(names, fve))
    assert found["says"] is None


def test_without_a_reconstructor_there_is_only_what_the_verbalizer_says(vectors, labels, figures):
    nla = NLA(tiny.paths()["av"], dtype=torch.float32, sampling=SHORT)
    found = evaluate(nla, vectors, labels)
    missing = ("fve", "cosine", "baseline", "retrieval")
    assert [found[name] for name in missing] == [None] * 4
    assert found["says"] == pytest.approx(figures["says"], abs=1e-4)
    assert found["extraction"] == 1.0


def test_the_baseline_is_the_given_one_else_the_nlas_else_of_these_vectors(
    nla, vectors, monkeypatch
):
    monkeypatch.setattr(nla, "sampling", Sampling(max_new_tokens=14))
    mine = Baseline(0.5, "mine")
    assert evaluate(nla, vectors, baseline=mine)["baseline"] == mine.to_dict()
    monkeypatch.setattr(nla, "baseline", None)
    found = evaluate(nla, vectors)["baseline"]
    assert found == Baseline.from_vectors(vectors, name=f"these {ROWS} vectors").to_dict()


def test_the_seed_chooses_the_controls(nla, vectors, figures, monkeypatch):
    monkeypatch.setattr(nla, "sampling", SHORT)
    again, other = evaluate(nla, vectors), evaluate(nla, vectors, seed=5)
    assert again["cosine"]["random"] == pytest.approx(figures["cosine"]["random"], abs=1e-5)
    assert other["cosine"]["random"] != pytest.approx(figures["cosine"]["random"], abs=1e-5)
    assert other["cosine"]["explanation"] == pytest.approx(figures["cosine"]["explanation"])


class Handle:
    def __init__(self, texts, reasons=()):
        self.found = (texts, dict(reasons))

    def extracted(self):
        return self.found


def test_texts_of_controls_are_one_per_row_and_none_where_one_is_malformed():
    random, shuffled = Handle(["a", "b"], {1: "no tag"}), Handle(["c", "d"])
    assert texts_of(Controls(Handle(["n"]), random, shuffled, (1, 0)), 2) == {
        "null": ["n", "n"],
        "random": ["a", None],
        "shuffled": ["c", "d"],
    }
    bare = texts_of(Controls(Handle(["n"], {0: "no tag"}), random, None, None), 2)
    assert bare == {"null": [None, None], "random": ["a", None]}


class ByHand:
    """Text ``"1 0"`` is the vector (1, 0)."""

    def reconstruct(self, texts):
        return torch.tensor([[float(part) for part in text.split()] for text in texts])


def test_a_round_trip_by_hand():
    vectors, half = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), Baseline(0.5, "by hand")
    found = round_trip(ByHand(), {"good": ["1 0", "0 1"], "half": ["1 0", None]}, vectors, half)
    assert found["good"] == pytest.approx({"cosine": 1.0, "mse": 0.0, "fve": 1.0}, abs=1e-5)
    assert found["half"] == pytest.approx({"cosine": 0.5, "mse": 1.0, "fve": -1.0}, abs=1e-5)


def test_one_row_has_no_other_row(nla, vectors):
    message = (
        "vectors has 1 rows, and at least two are needed: a control is another row's vector. Hold "
        "out more documents."
    )
    with pytest.raises(NLAError, match=f"^{re.escape(message)}$"):
        evaluate(nla, vectors[:1])


@pytest.mark.parametrize("count", [0, 2, 4])
def test_labels_are_one_per_vector(nla, vectors, count):
    message = f"Got {count} labels for {ROWS} vectors; pass one for each."
    with pytest.raises(NLAError, match=f"^{re.escape(message)}$"):
        evaluate(nla, vectors, ["About Paris."] * count)
    assert nla.pending == ()
