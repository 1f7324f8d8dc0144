"""The options that all experiments take: shown, checked by name, and as they were before."""

import inspect

import pytest

from nnsight_nla import NLAError
from nnsight_nla.experiments import ablate, logit_difference, patch, steer
from nnsight_nla.experiments.plan import Options

PROMPT = "What a lovely day! People in Paris speak"
METRIC = logit_difference(" French", " Italian")
DEFAULTS = {
    "layers": inspect.Parameter.empty,
    "positions": inspect.Parameter.empty,
    "metric": inspect.Parameter.empty,
    "explain_at": -1,
    "site": "residual",
    "heads": None,
    "batch_size": 64,
    "resume": None,
    "remote": False,
    "question": None,
    "choices": None,
}
OWN = {
    patch: ("model", "nla", "clean", "corrupt"),
    ablate: ("model", "nla", "prompt", "method", "reference", "over", "direction", "seed"),
    steer: ("model", "nla", "prompt", "vector", "doses", "controls", "seed"),
}
each_experiment = pytest.mark.parametrize("experiment", list(OWN), ids=lambda each: each.__name__)


@each_experiment
def test_the_signature_shows_every_option_and_its_default(experiment):
    parameters = inspect.signature(experiment).parameters
    assert list(parameters) == [*OWN[experiment], *DEFAULTS]
    assert {name: parameters[name].default for name in DEFAULTS} == DEFAULTS
    kinds = {parameters[name].kind for name in DEFAULTS}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}


@each_experiment
def test_the_help_describes_every_parameter(experiment):
    described = inspect.getdoc(experiment)
    for name in inspect.signature(experiment).parameters:
        assert f"\n    {name}: " in described
    assert "See `Options`" not in described
    assert described.count("\n\nRaises:\n") == 1


def test_the_types_name_every_option():
    assert list(Options.__annotations__) == list(DEFAULTS)
    assert Options.__required_keys__ == {"layers", "positions", "metric"}


@pytest.mark.parametrize(
    ("experiment", "prompts", "own"),
    [
        (patch, (PROMPT, PROMPT), {}),
        (ablate, (PROMPT,), {"method": "zero"}),
        (steer, (PROMPT,), {"vector": None}),
    ],
)
def test_an_unknown_or_a_missing_option_is_a_type_error(pair, experiment, prompts, own):
    given = {"layers": 0, "positions": 0, "metric": METRIC, **own}
    message = rf"{experiment.__name__}\(\) got an unexpected keyword argument 'layer'. Its options"
    with pytest.raises(TypeError, match=message) as caught:
        experiment(*pair, *prompts, layer=0, **given)
    for name in [*own, *DEFAULTS]:
        assert name in str(caught.value)
    del given["layers"], given["metric"]
    message = rf"{experiment.__name__}\(\) is missing .* arguments: 'layers', 'metric'"
    with pytest.raises(TypeError, match=message):
        experiment(*pair, *prompts, **given)


@pytest.mark.parametrize("size", [0, True, 1.5, "many"])
def test_batch_sizes_that_do_not_fit(pair, size):
    with pytest.raises(NLAError, match=r"batch_size=.*: expected a whole number from 1"):
        patch(*pair, PROMPT, PROMPT, layers=0, positions=0, metric=METRIC, batch_size=size)
