"""The training forward against the draws themselves, token by token, and against a plain hook."""

from collections import defaultdict

import pytest
import torch
from peft import LoraConfig, get_peft_model

from nnsight_nla import NLA, tiny
from nnsight_nla.core import sampling as drawing
from nnsight_nla.core.sampling import draw_seed
from nnsight_nla.training import RLSettings
from nnsight_nla.training.reinforcement.policy import Policy
from nnsight_nla.training.reinforcement.rollout import roll_out
from nnsight_nla.verbalize.verbalizer import Verbalizer
from tests.helpers import plain
from tests.verbalize.test_architectures import INJECTIONS, VECTORS, build, described, wrapped
from tests.verbalize.test_states import build as hybrid

SETTINGS = RLSettings(prompts=3, draws=4, max_new_tokens=24, temperature=0.9, length_margin=8)


@pytest.fixture
def recorded(monkeypatch):
    """The log-probability of each token at the moment when it was drawn, by the row's seed."""
    found = defaultdict(list)
    plain_noise = drawing.GumbelNoise.__call__

    def noise(self, input_ids, scores):
        noisy = plain_noise(self, input_ids, scores)
        chosen = noisy.argmax(-1)
        logprobs = scores.log_softmax(-1).gather(-1, chosen[:, None])[:, 0]
        for seed, value in zip(self.seeds, logprobs.tolist(), strict=True):
            found[seed].append(value)
        return noisy

    monkeypatch.setattr(drawing.GumbelNoise, "__call__", noise)
    return found


def ratios(nla, vectors, settings, recorded):
    """Policy over draws, for each token of each text; and the rollout."""
    nla.batch_size = 5  # Groups are spread over several batches, and rows leave when done.
    rollout = roll_out(nla, vectors, settings, step=3)
    nla.batch_size = "auto"
    with nla.runtime.use():
        policy = Policy(Verbalizer(nla.runtime, nla.checkpoint, nla.prompt), settings)
        with policy.writing(), policy.scoring(vectors, rollout.ids) as scored:
            found = scored.logprobs.detach()
    seed = settings.seed * 1_000_003 + 3
    values = []
    for number, ids in enumerate(rollout.ids):
        group, draw = divmod(number, settings.draws)
        drawn = torch.tensor(recorded[draw_seed(seed, vectors[group], draw)])
        assert len(drawn) == len(ids), "an id for each draw, the end of the sequence included"
        assert scored.drawn[number].sum() == len(ids)
        values.append((found[number, : len(ids)] - drawn).exp())
    return values, rollout, policy


def largest(values):
    return max(float((each - 1).abs().max()) for each in values)


@pytest.mark.parametrize("activations", ["keep", "recompute"])
def test_before_the_first_update_every_importance_ratio_is_one(
    nla, residuals, recorded, activations
):
    settings = RLSettings(**{**vars(SETTINGS), "max_new_tokens": 64, "activations": activations})
    values, rollout, policy = ratios(nla, residuals[3:6], settings, recorded)
    assert policy.shares_prompts == (activations == "keep")
    assert len({len(each) for each in rollout.ids}) > 1
    assert sum(map(len, rollout.ids)) > 250
    assert largest(values) < 1e-3


def test_a_shift_of_one_vector_shows_in_the_ratios(nla, residuals, recorded, monkeypatch):
    """The test above can fail: texts that are scored with the vectors of others."""
    vectors = residuals[3:6]
    scoring = Policy.scoring
    monkeypatch.setattr(
        Policy, "scoring", lambda self, given, ids: scoring(self, given.roll(1, 0), ids)
    )
    values, _, _ = ratios(nla, vectors, SETTINGS, recorded)
    assert largest(values) > 0.1


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("injection", ["add", "replace"])
def test_the_ratios_are_one_on_other_architectures(family, injection, recorded):
    """Gemma's blocks have windows shorter than the text; GPT-2 has dropout."""
    module = build(family)
    nla = NLA(wrapped(module), checkpoint=described(INJECTIONS[injection]))
    values, rollout, policy = ratios(nla, VECTORS, SETTINGS, recorded)
    assert policy.shares_prompts == (family != "gemma3")
    assert any(rollout.cut)
    assert largest(values) < 1e-3


@pytest.mark.parametrize("family", ["qwen3_next", "lfm2"])
def test_the_ratios_are_one_where_states_are_overwritten(family, recorded):
    """The fast engine shares the prompt of a hybrid; autograd refuses what overwrites states."""
    nla = NLA(wrapped(hybrid(family)), checkpoint=described(INJECTIONS["add"]))
    assert nla.info()["engine"]["name"] == "fast"
    values, _, policy = ratios(nla, VECTORS, SETTINGS, recorded)
    assert not policy.shares_prompts
    assert largest(values) < 1e-3


def test_the_ratios_are_one_for_an_adapter(recorded):
    module = build("qwen3")
    lora = get_peft_model(module, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, weight in lora.named_parameters():
            if "lora_" in name:
                weight.uniform_(-0.3, 0.3)
    nla = NLA(wrapped(module.eval()), checkpoint=described(INJECTIONS["add"]))
    values, _, _ = ratios(nla, VECTORS, SETTINGS, recorded)
    assert largest(values) < 1e-3


def test_it_agrees_with_a_plain_hook_on_the_plain_model(nla, residuals):
    """Nothing of ours: the model of transformers, a hook, and log_softmax."""
    model, tokenizer, prompt = plain.load(tiny.paths()["av"])
    position = prompt.index(tokenizer.convert_tokens_to_ids("㈎"))
    vectors = residuals[3:5]
    replies = ["<explanation>\nAbout Paris", "<explanation>\nA cow.\n</explanation>"] * 2
    ids = tokenizer(replies, add_special_tokens=False)["input_ids"]
    settings = RLSettings(**{**vars(SETTINGS), "draws": 2})
    with nla.runtime.use():
        policy = Policy(Verbalizer(nla.runtime, nla.checkpoint, nla.prompt), settings)
        with policy.writing(), torch.no_grad(), policy.scoring(vectors, ids) as scored:
            pass
    for number, reply in enumerate(ids):
        vector = vectors[number // 2]

        def write(module, args, output, vector=vector):
            here = output[:, position]
            output = output.clone()
            output[:, position] = here + here.norm() * vector / vector.norm()
            return output

        handle = model.model.layers[1].register_forward_hook(write)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
        handle.remove()
        every = (logits / settings.temperature).log_softmax(-1)
        expected = every[range(len(reply)), reply]
        torch.testing.assert_close(
            scored.logprobs[number, : len(reply)], expected, atol=1e-4, rtol=1e-4
        )
        entropy = -(every.exp() * every).sum(-1)
        torch.testing.assert_close(
            scored.entropy[number, : len(reply)], entropy, atol=1e-4, rtol=1e-4
        )


def test_both_ways_of_running_the_prompt_have_one_gradient():
    """The prompt that is run once gets the gradients of all its draws."""
    gradients = []
    for activations in ("keep", "recompute"):
        module = build("qwen3")
        nla = NLA(wrapped(module), checkpoint=described(INJECTIONS["add"]))
        settings = RLSettings(**{**vars(SETTINGS), "draws": 2, "activations": activations})
        ids = [[5, 9, 7], [8, 261], [4], [6, 6, 6, 3]]
        with nla.runtime.use():
            policy = Policy(Verbalizer(nla.runtime, nla.checkpoint, nla.prompt), settings)
            with policy.writing(), policy.scoring(VECTORS[:2], ids) as scored:
                scored.logprobs[scored.drawn].sum().backward()
        assert not any(each.training for each in module.modules())
        gradients.append([each.grad for each in module.parameters() if each.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 20
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, atol=2e-3, rtol=2e-3)


def test_writing_leaves_the_model_as_it_was(nla, residuals):
    before = nla.explain(residuals[4]).text
    hooks = sum(len(each._forward_hooks) for each in nla.av._module.modules())
    with nla.runtime.use() as model:
        policy = Policy(Verbalizer(nla.runtime, nla.checkpoint, nla.prompt), SETTINGS)
        with policy.writing():
            # The hook is silent while nothing is scored, so rollouts are not written to twice.
            assert nla.explain(residuals[4]).text == before
        assert sum(len(each._forward_hooks) for each in model._module.modules()) == hooks
    assert nla.explain(residuals[4]).text == before
