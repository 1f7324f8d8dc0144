"""An nnsight model and a `TransformerBridge` give one text for one prompt, however it is padded.

The reference is each prompt alone, through the plain transformers model without a batch.
"""

import warnings

import pytest
import torch
from nnsight import TransformersModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnsight_nla import NLA, InjectionError, NLAWarning, Sampling, tiny
from nnsight_nla.models import bridge as bridges
from tests.helpers.families import CONTEXT, boot, save

SEVERAL = ["What a lovely day! People in Paris speak", "The cow lives in the", "People"]
CHAT = [[{"role": "user", "content": "The cow lives"}], [{"role": "user", "content": "Paris"}]]
UNFINISHED = [*CHAT[0], {"role": "assistant", "content": "in the"}]
CASES = [("gpt2", True), ("llama", True)]
CASES += [(family, pad) for family in ("qwen3", "gemma") for pad in (False, True)]
SHORT = Sampling(max_new_tokens=10)


class Hosts:
    """One saved model, as both kinds of target."""

    def __init__(self, folder, family, pad_is_eos):
        self.folder = save(folder, family, pad_is_eos=pad_is_eos)
        self.model = TransformersModel(
            str(folder), task="text-generation", dtype=torch.float32, dispatch=True
        )
        self.bridge = boot(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.adds_bos = family in ("llama", "gemma")

    def ids(self, prompt, bos):
        """The prompt's ids, with or without a BOS, from the published tokenizer."""
        found = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        mark = self.bridge.tokenizer.bos_token_id
        return [mark, *found] if bos else found


@pytest.fixture(
    scope="module", params=CASES, ids=lambda case: f"{case[0]}-{'pad=eos' if case[1] else 'pad'}",
)  # fmt: skip
def hosts(request, tmp_path_factory):
    return Hosts(tmp_path_factory.mktemp("target"), *request.param)


@pytest.fixture(scope="module")
def nla():
    """Without a reconstructor, whose controls would take most of the time."""
    return NLA(tiny.paths()["av"], dtype=torch.float32)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        for said in ("The verbalizer was trained on", ".*the bridge (puts|takes)"):
            warnings.filterwarnings("ignore", said, NLAWarning)
        yield


@pytest.fixture
def expected(hosts, nla):
    """The vectors of each prompt alone, and their texts at the last token."""

    def of(rows):
        layer = nla.checkpoint.layer
        with torch.no_grad():
            vectors = [
                hosts.plain(torch.tensor([ids]), output_hidden_states=True).hidden_states
                for ids in rows
            ]
        vectors = [states[layer + 1][0] for states in vectors]
        return vectors, nla.explain(torch.stack([v[-1] for v in vectors]), sampling=SHORT).text

    return of


def check(nla, handle, vectors, texts):
    """Compare a ragged handle with the reference."""
    assert handle.lengths == tuple(map(len, vectors))
    torch.testing.assert_close(handle.vectors, torch.cat(vectors), atol=2e-4, rtol=2e-4)
    last = [prompt[-1] for prompt in handle]
    nla.resolve(last)  # These only: all other tokens would take minutes.
    assert [each.text for each in last] == texts


@pytest.mark.parametrize(
    ("side", "prompts"),
    [("left", SEVERAL), ("right", SEVERAL), ("right", SEVERAL[:1])],
    ids=["left", "right", "one"],
)
@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no bos"])
def test_a_padded_batch(hosts, nla, expected, monkeypatch, side, bos, prompts):
    rows = [hosts.ids(prompt, bos) for prompt in prompts]
    vectors, texts = expected(rows)

    options = {"padding_side": side, "prepend_bos": bos}
    default, tokenizer = hosts.bridge.cfg.default_prepend_bos, hosts.bridge.tokenizer
    unmasked = side == "left" and bos != default and len(prompts) > 1
    if unmasked and tokenizer.bos_token_id == tokenizer.pad_token_id:
        with pytest.raises(InjectionError, match=f"Set bridge.cfg.default_prepend_bos = {bos} and"):
            nla.positions(hosts.bridge, prompts, **options)
        with pytest.raises(InjectionError, match="leave prepend_bos= out of the call"):
            hook = nla.hook(hosts.bridge)
            hosts.bridge.run_with_hooks(prompts, fwd_hooks=hook.fwd_hooks, **options)
        monkeypatch.setattr(hosts.bridge.cfg, "default_prepend_bos", bos)
        del options["prepend_bos"]
    places = nla.positions(hosts.bridge, prompts, **options)
    assert [list(each.ids) for each in places] == rows
    hook = nla.hook(hosts.bridge, positions="all")
    with hosts.bridge.hooks(fwd_hooks=hook.fwd_hooks):
        _, cache = hosts.bridge.run_with_cache(prompts, **options)
    check(nla, nla.explain(cache[nla.hook_name], at=places, sampling=SHORT), vectors, texts)
    for place, found in zip(places, hook.explanations[0], strict=True):
        assert found.tokens == list(place.tokens)
    found = torch.cat([each.vectors for each in hook.explanations[0]])
    torch.testing.assert_close(found, torch.cat(vectors), atol=2e-4, rtol=2e-4)

    hosts.model.tokenizer.padding_side = side
    given = prompts if bos == hosts.adds_bos else rows
    with torch.no_grad(), hosts.model.trace(given):
        at = nla.positions(hosts.model, given)
        thought = nla.explain(nla.layer(hosts.model).output, at=at, sampling=SHORT)
    check(nla, thought, vectors, texts)


def test_the_bridges_defaults_are_followed(hosts, nla, expected):
    _, cache = hosts.bridge.run_with_cache(SEVERAL)
    places = nla.positions(hosts.bridge, SEVERAL)
    vectors, texts = expected([list(each.ids) for each in places])
    check(nla, nla.explain(cache[nla.hook_name], at=places, sampling=SHORT), vectors, texts)


@pytest.mark.parametrize("chats", [CHAT, CHAT[:1], [UNFINISHED]], ids=["two", "one", "unfinished"])
def test_chat_messages(hosts, nla, expected, chats):
    places = nla.positions(hosts.model, chats)
    ours = nla.positions(hosts.bridge, chats)
    assert [each.ids for each in ours] == [each.ids for each in places]
    vectors, texts = expected([list(each.ids) for each in places])
    with torch.no_grad(), hosts.model.trace(chats if len(chats) > 1 else chats[0]):
        thought = nla.explain(nla.layer(hosts.model).output, at=places, sampling=SHORT)
    check(nla, thought, vectors, texts)
    for chat, text in zip(chats, texts, strict=True):
        for target in (hosts.model, hosts.bridge):
            assert nla.read(target, chat, positions=-1, sampling=SHORT)[-1].explanation == text


def test_reading_is_the_same(hosts, nla, expected):
    prompt = SEVERAL[0]
    _, (text,) = expected([hosts.ids(prompt, hosts.adds_bos)])
    readings = [
        nla.read(each, prompt, positions=-1, sampling=SHORT) for each in (hosts.model, hosts.bridge)
    ]
    assert [reading[-1].explanation for reading in readings] == [text, text]
    assert readings[0].tokens == readings[1].tokens


def test_a_prompt_that_ends_in_the_pad_token(hosts, nla):
    """Where padding is the end of sequence, a prompt may really have one."""
    ends = [SEVERAL[1] + hosts.tokenizer.eos_token, *SEVERAL]
    for side in ("left", "right"):
        hook = nla.hook(hosts.bridge)
        places = nla.positions(hosts.bridge, ends, padding_side=side)
        hosts.bridge.run_with_hooks(ends, fwd_hooks=hook.fwd_hooks, padding_side=side)
        found = [each.positions for each in hook.explanations[0]]
        assert found == [len(each.ids) - 1 for each in places]
    hook = nla.hook(hosts.bridge)
    hosts.bridge.run_with_hooks(ends[0], fwd_hooks=hook.fwd_hooks)
    assert hook.explanations[0][0].tokens == hosts.tokenizer.eos_token


def test_a_beginning_that_the_tokenizer_does_not_make_is_said(hosts, nla):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        nla.positions(hosts.bridge, SEVERAL, prepend_bos=hosts.adds_bos)
        assert not [each for each in caught if "the prompt" in str(each.message)]
        nla.positions(hosts.bridge, SEVERAL[0], prepend_bos=not hosts.adds_bos)
    (said,) = [str(each.message) for each in caught if "the prompt" in str(each.message)]
    assert f"Pass prepend_bos={hosts.adds_bos} to the call" in said


def test_a_text_past_the_context(hosts, nla):
    long = "cow " * (CONTEXT + 4)
    for target in (hosts.model, hosts.bridge):
        if "gpt2" in type(hosts.model._module).__module__:
            with pytest.raises(InjectionError, match=f"built for {CONTEXT}; it has no positions"):
                nla.read(target, long)
            continue
        with pytest.warns(NLAWarning, match=f"was built for {CONTEXT}"):
            reading = nla.read(target, long, positions=[CONTEXT - 1, CONTEXT], sampling=SHORT)
        said = f"position {CONTEXT}: the target was built for {CONTEXT} tokens"
        assert said in reading[CONTEXT].warnings
        assert said not in reading[CONTEXT - 1].warnings
    with pytest.warns(NLAWarning, match=f"to the {CONTEXT} of its context"):
        (cut,) = nla.positions(hosts.bridge, long)
    assert len(cut.ids) == CONTEXT


def test_a_calls_frame_is_found(hosts):
    """Without it a hook reads the padding off the pad tokens."""
    seen = []

    def note(value, hook):
        seen.append(bridges._compat.forward_call(hosts.bridge))

    hosts.bridge.run_with_hooks(SEVERAL, fwd_hooks=[(bridges.IDS, note)], padding_side="left")
    assert seen[0]["input"] == SEVERAL
    assert (seen[0]["padding_side"], seen[0]["generates"]) == ("left", False)
    with hosts.bridge.hooks(fwd_hooks=[(bridges.IDS, note)]):
        hosts.bridge.generate(SEVERAL, max_new_tokens=1, verbose=False)
    assert (seen[1]["input"], seen[1]["generates"]) == (SEVERAL, True)
    assert bridges._compat.forward_call(hosts.bridge) is None
