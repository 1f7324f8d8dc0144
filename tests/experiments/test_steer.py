"""Steering: effects against plain hooks on the plain model, and what is refused."""

import pytest
import torch

from nnsight_nla import NLA, NLAWarning, Sampling, tiny
from nnsight_nla.experiments import ExperimentError, steer
from tests.experiments.test_ablate import FRENCH, agrees, at, direction
from tests.experiments.test_patch import CLEAN, CORRUPT, LAST, K, Plain


@pytest.fixture(scope="module")
def plain():
    return Plain()


def test_steering_adds_the_dose_and_the_controls_have_the_same_norm(model, nla, plain):
    vector = direction(1) * 4
    sweep = steer(
        model, nla, CLEAN, layers=[0, K], positions=[LAST], metric=FRENCH, vector=vector,
        doses=[0, 0.5, 2], controls=2, seed=5,
    )  # fmt: skip
    assert len(sweep) == 2 * 3 * 3
    base = plain.run(CLEAN)
    for row in sweep.rows():
        if row["kind"] == "steer":
            write = at(LAST, lambda h, row=row: h + row["dose"] * vector)
            agrees(plain, row, "residual", row["layer"], None, write)
        if row["layer"] == K:
            added = sweep.outcomes[sweep.cells[sweep.rows().index(row)]].residuals[LAST]
            added = added - base.residual[LAST]
            expected = row["dose"] * float(vector.norm())
            assert float(added.norm()) == pytest.approx(expected, rel=1e-3, abs=1e-3)
            if row["kind"] != "steer" and row["dose"]:
                assert abs(float(torch.cosine_similarity(added, vector, dim=0))) < 0.5
    kinds = {row["kind"] for row in sweep.rows()}
    assert kinds == {"steer", "random 0", "random 1"}
    again = steer(
        model, nla, CLEAN, layers=[0, K], positions=[LAST], metric=FRENCH, vector=vector,
        doses=[0, 0.5, 2], controls=2, seed=5,
    )  # fmt: skip
    assert [row["metric"] for row in again.rows()] == [row["metric"] for row in sweep.rows()]


def test_steering_with_a_direction_made_of_words_beats_the_random_control(model, nla):
    with model.trace(CLEAN):
        thought = nla.explain(nla.layer(model).output[0, -1])
    to = thought.text.replace("Paris", "Rome").replace("France", "Italy")
    vector = nla.direction(to=to.replace("French", "Italian"), away_from=thought)
    sweep = steer(
        model, nla, CLEAN, layers=K, positions=-1, metric=FRENCH, vector=vector, doses=1.0
    )
    given, control = sweep.rows()
    assert given["answer"] == " Italian"
    assert "Rome" in given["after"]
    assert control["answer"] == " French"
    assert given["effect"] < control["effect"] - 0.5


def test_steering_everywhere_at_once(model, nla, plain):
    vector = direction(2)
    sweep = steer(
        model, nla, CLEAN, layers=1, positions="every", metric=FRENCH, vector=vector, controls=0
    )
    agrees(plain, sweep.rows()[0], "residual", 1, None, lambda t: t + vector)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"vector": direction(width=4)}, r"vector is \[4\]: expected a tensor of shape \[128\]"),
        ({"vector": torch.full((128,), torch.nan)}, "zero, NaN or infinite"),
        ({"vector": "Rome"}, "vector is str"),
        ({"doses": []}, r"doses=\[\]: expected a number"),
        ({"doses": [float("inf")]}, "expected a number"),
        ({"doses": "much"}, "expected a number"),
        ({"controls": -1}, "controls=-1"),
        ({"controls": True}, "controls=True"),
    ],
)
def test_steers_that_do_not_fit(model, nla, given, message):
    options = {"layers": [0], "positions": [0], "metric": FRENCH, "vector": direction(), **given}
    with pytest.raises(ExperimentError, match=message):
        steer(model, nla, CLEAN, **options)


def test_an_interrupted_steer_goes_on(model, nla):
    seen = []

    def hook(module, args, output):
        seen.append(1)
        if len(seen) > 2:
            raise KeyboardInterrupt

    handle = model._module.model.layers[0].register_forward_hook(hook)
    options = {"layers": "all", "positions": -1, "metric": FRENCH, "vector": direction()}
    with pytest.warns(NLAWarning, match="Stopped after 4 of 12 cells"):
        partial = steer(model, nla, CLEAN, batch_size=4, **options)
    handle.remove()
    assert len(steer(model, nla, CLEAN, batch_size=4, resume=partial, **options)) == 12


def test_an_oracle_is_asked_about_the_steered_residual(model, plain):
    oracle = NLA.on(model, av=tiny.paths()["oracle"], sampling=Sampling(max_new_tokens=12))
    vector = plain.run(CORRUPT).residual[LAST] - plain.run(CLEAN).residual[LAST]
    question = "What is the subject?"
    sweep = steer(
        model, oracle, CLEAN, layers=[1, K], positions=[LAST], metric=FRENCH, vector=vector,
        question=question,
    )  # fmt: skip
    assert [(row["layer"], row["kind"], row["after"]) for row in sweep.rows()] == [
        (1, "steer", "Rome"), (1, "random 0", "Paris"),
        (K, "steer", "Rome"), (K, "random 0", "Paris"),
    ]  # fmt: skip
    assert {row["before"] for row in sweep.rows()} == {"Paris"}
    run = agrees(plain, sweep.rows()[0], "residual", 1, None, at(LAST, lambda h: h + vector))
    assert oracle.ask(run.residual[LAST], question).text == "Rome"
    (chosen,) = steer(
        model, oracle, CLEAN, layers=[K], positions=[LAST], metric=FRENCH, vector=vector,
        controls=0, question=question, choices=["Rome", "Paris"],
    ).rows()  # fmt: skip
    assert (chosen["before"], chosen["after"]) == ("Paris", "Rome")
