"""An oracle on NDIF: answers, choices and controls are those of this machine."""

import pytest
import torch

from nnsight_nla import NLA, Explanation, Sampling, tiny

PROMPT = "What a lovely day! People in Paris speak"
QUESTIONS = ["What is the subject?", "What is the tone?"]
CHOICES = ["Yes", "No"]
SHORT = Sampling(max_new_tokens=12)


pytestmark = pytest.mark.usefixtures("as_installed")


@pytest.fixture
def here() -> NLA:
    """Target and oracle on this machine."""
    return NLA.on(tiny.load()[0], av=tiny.paths()["oracle"], sampling=SHORT)


@pytest.fixture
def there(target) -> NLA:
    """The oracle on the target's deployment."""
    return NLA.on(target, av=tiny.paths()["oracle"], remote=True, sampling=SHORT)


def residuals() -> torch.Tensor:
    """The residuals at the last three tokens, read on this machine."""
    model, nla = tiny.load()
    with model.trace(PROMPT):
        found = nla.layer(model).output[0, -3:].save()
    return found


def test_questions_about_a_remote_trace_are_answered_here(ndif, target, here):
    with target.trace(PROMPT, remote=True):
        residual = here.layer(target).output[0]
        answer = here.ask(residual[-3:], QUESTIONS[0])
        other = here.ask(residual[-1], "Is the tone calm?", choices=CHOICES)
    assert type(answer) is Explanation
    vectors = residuals()
    assert answer.text == here.ask(vectors, QUESTIONS[0]).text
    expected = here.ask(vectors[-1], "Is the tone calm?", choices=CHOICES)
    assert other.probabilities == pytest.approx(expected.probabilities, abs=1e-4)


def test_answers_choices_and_controls_come_from_the_host(ndif, target, there, here):
    vectors = residuals()
    rows = [vectors, vectors[-1:]]
    with target.trace(PROMPT, remote=True):
        residual = there.layer(target).output[0]
        remote = there.ask([residual[-3:], residual[-1:]], QUESTIONS)
    local = here.ask(rows, QUESTIONS)
    assert (remote.text, remote.raw) == (local.text, local.raw)
    assert remote.trust == local.trust
    assert [label.without is not None for label in remote.trust] == [True, True]

    chosen, expected = (
        each.ask(vectors[:, None], "Is the tone calm?", choices=CHOICES) for each in (there, here)
    )
    for one, other in zip(chosen.probabilities, expected.probabilities, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    assert chosen.mass == pytest.approx(expected.mass, abs=1e-4)
    assert [label.shares for label in chosen.trust] == [label.shares for label in expected.trust]
    assert all(each.device.type == "meta" for each in target._module.parameters())
