"""Hyperparameters, conditions to stop at, and the learning rate of each step."""

import pytest

from nnsight_nla.training import RLSettings, RLWatching, TrainingError
from nnsight_nla.training.reinforcement.loop import schedule
from nnsight_nla.training.reinforcement.stops import Stop, parse_stops


def test_the_defaults_are_the_published_ones():
    found = RLSettings()
    assert (found.av_rate, found.ar_rate, found.kl) == (1e-4, 8e-5, 0.01)
    assert (found.prompts, found.draws, found.steps) == (256, 8, 400)
    assert (found.max_new_tokens, found.temperature, found.length_margin) == (256, 1.0, 64)
    assert found.reconstructor == "train"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"draws": 1},
            "RLSettings(draws=1): expected 2 or more: the texts of one vector are compared with "
            "each other, and a group of one has nothing to compare.",
        ),
        ({"steps": 0}, "RLSettings(steps=0): expected a whole number, 1 or more."),
        ({"prompts": 2.5}, "RLSettings(prompts=2.5): expected a whole number, 1 or more."),
        ({"temperature": 0}, "RLSettings(temperature=0): expected above 0."),
        ({"kl": -0.1}, "RLSettings(kl=-0.1): expected 0 or more."),
        ({"av_rate": float("nan")}, "RLSettings(av_rate=nan): expected 0 or more."),
        (
            {"reconstructor": "frozen"},
            "RLSettings(reconstructor='frozen'): expected 'train' or 'freeze'.",
        ),
        ({"engine": "generate"}, "RLSettings(engine='generate'): expected 'fast' or 'vllm'."),
        ({"seed": True}, "RLSettings(seed=True): expected a whole number."),
    ],
)
def test_a_bad_setting_is_refused(given, message):
    with pytest.raises(TrainingError) as caught:
        RLSettings(**given)
    assert str(caught.value) == message


def test_a_bad_number_of_rows_is_refused():
    with pytest.raises(TrainingError) as caught:
        RLWatching(rows=-1)
    assert str(caught.value) == "RLWatching(rows=-1): expected a whole number, 0 or more."


def test_the_limit_itself_is_allowed():
    above, below = Stop.parse("kl > .5"), Stop.parse("eval_fve<0.6")
    assert above == Stop("kl", True, 0.5)
    assert above.reason({"kl": 0.5}) is None
    assert above.reason({"kl": 0.51}) == "kl is 0.51, above 0.5"
    assert below.reason({"eval_fve": 0.6, "kl": 9}) is None
    assert below.reason({"eval_fve": 0.2}) == "eval_fve is 0.2, below 0.6"


@pytest.mark.parametrize("condition", ["kl", "kl=0.5", "kl>", ">0.5", "kl>a", "kl>=0.5", 0.5, None])
def test_a_condition_of_another_form_is_refused(condition):
    with pytest.raises(TrainingError, match=r"expected a figure, < or >, and a number, such as"):
        parse_stops([condition], ["kl"])


def test_a_condition_on_an_unknown_figure_names_those_that_there_are():
    with pytest.raises(TrainingError) as caught:
        parse_stops(["truth<0.5"], ["kl", "extraction"])
    assert str(caught.value) == (
        "stop names 'truth', which is not measured in this training. Expected one of kl, "
        "extraction."
    )


def test_the_learning_rate_warms_up_and_falls():
    constant = RLSettings(steps=10)
    assert [schedule(step, constant) for step in range(10)] == [1.0] * 10
    falling = RLSettings(steps=6, warmup=2, final_rate=0.0)
    rates = [schedule(step, falling) for step in range(6)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[4] == pytest.approx(0.5)
