"""Sites, and one forward pass in which every row has its own intervention."""

import pytest
import torch
from nnsight import TransformersModel

from nnsight_nla import InjectionError, NLAError
from nnsight_nla.experiments.forward import Edit, Target, find_sites
from nnsight_nla.experiments.metrics import bind
from nnsight_nla.experiments.model_interface import interface_of
from nnsight_nla.experiments.records import reach
from tests.models.test_hosts import build, tokenizer

K = 2


def find(model, *which):
    """The sites in order."""
    return list(find_sites(interface_of(model), *which).values())


FAMILIES = ("qwen3", "llama", "gemma3", "gpt2")
PLACES = {
    "qwen3": ("self_attn.o_proj", "mlp"),
    "llama": ("self_attn.o_proj", "mlp"),
    "gemma3": ("self_attn.o_proj", "mlp"),
    "gpt2": ("attn.c_proj", "mlp"),
}


@pytest.fixture(scope="module", params=FAMILIES)
def host(request):
    """A random-weight model, and nnsight's view of it."""
    plain = build(request.param)
    # Default initialisation is so small that nothing written anywhere is heard.
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return request.param, plain, TransformersModel(plain, tokenizer=tokenizer())


@pytest.mark.parametrize("site", ["residual", "attention", "mlp", "head"])
def test_what_an_edit_reaches_is_what_reach_says(pair, site):
    """Writing noise somewhere changes the residual at (K, q) exactly where `reach` says so."""
    model, nla = pair
    target = Target.of(model, nla, remote=False)
    ids = target.model.positions("People in Paris speak").ids
    measure = bind(lambda logits: logits[:, 0], model.tokenizer)
    asked, length = 2, len(ids)
    clean = target.run([ids] * 1, measure, read=[(0, asked)]).residuals[0]
    for each in find(model, site, "all", None if site != "head" else [1]):
        rows = [ids] * length
        noise = torch.randn(each.width, generator=torch.Generator().manual_seed(0)) * 5
        edits = [Edit(row, row, each, noise) for row in range(length)]
        read = [(row, asked) for row in range(length)]
        found = target.run(rows, measure, edits=edits, read=read).residuals
        for position in range(length):
            moved = (found[position] - clean).abs().max() > 1e-3
            said = reach(each.layer, position, target.k, asked) == "reaches"
            assert bool(moved) == said, (site, each.layer, position)


class TestSites:
    def test_modules_and_columns(self, host):
        family, plain, model = host
        attention, mlp = PLACES[family]
        stack = plain.get_submodule("transformer.h" if family == "gpt2" else "model.layers")
        for site, path in (("residual", ""), ("attention", attention), ("mlp", mlp)):
            found = find(model, site, [1, 3])
            assert [each.layer for each in found] == [1, 3]
            assert found[0].envoy._module is stack[1].get_submodule(path)
            assert (found[0].where, found[0].start, found[0].stop) == ("output", 0, 16)
        heads = find(model, "head", 2)
        assert [(each.head, each.start, each.stop) for each in heads] == [(0, 0, 8), (1, 8, 16)]
        assert all(each.where == "input" for each in heads)
        assert heads[0].envoy._module is stack[2].get_submodule(attention)

    @pytest.mark.parametrize("site", ["residual", "attention", "mlp", "head"])
    @pytest.mark.parametrize("action", ["write", "add", "project"])
    def test_a_batch_of_edits_is_what_plain_hooks_give(self, host, site, action):
        """Every row has its own place; a hook on the plain model does one at a time."""
        family, plain, model = host
        torch.manual_seed(1)
        ids = [4, 5, 6, 7, 8]
        target = Target(interface_of(model), find(model, "residual", K)[0].envoy, K)
        places = [(layer, position) for layer in range(4) for position in (0, 2, 4)]
        where = {layer: find(model, site, layer)[-1] for layer in range(4)}
        vectors = torch.randn(len(places), where[0].width)
        if action == "project":
            vectors = vectors / vectors.norm(dim=-1, keepdim=True)
        edits = [
            Edit(row, position, where[layer], vectors[row])
            for row, (layer, position) in enumerate(places)
        ]
        measure = bind(lambda logits: logits[:, 0], model.tokenizer)
        found = target.run(
            [ids] * len(places),
            measure,
            edits=edits,
            action=action,
            read=[(row, 4) for row in range(len(places))],
        )
        moved = 0
        untouched = _hooked(plain, family, ids, None, None, None, None, None)
        for row, (layer, position) in enumerate(places):
            logits, residual = _hooked(
                plain, family, ids, site, layer, position, vectors[row], action
            )
            torch.testing.assert_close(found.answers[row], logits, atol=2e-4, rtol=2e-4)
            torch.testing.assert_close(found.residuals[row], residual, atol=2e-4, rtol=2e-4)
            assert found.top[row] == int(logits.argmax())
            moved += bool((logits - untouched[0]).abs().max() > 1e-3)
        assert moved >= 8, "the edits are heard"

    @pytest.mark.parametrize(
        ("site", "layers", "heads", "message"),
        [
            ("resid", 0, None, "expected one of residual, attention, mlp, head"),
            ("residual", 4, None, "layers=4: expected whole numbers from 0 to 3"),
            ("residual", -1, None, "layers=-1: expected whole numbers from 0 to 3"),
            ("residual", [], None, r"layers=\[\]: expected"),
            ("residual", "last", None, "layers='last': expected"),
            ("residual", True, None, "layers=True: expected"),
            ("head", 0, 2, "heads=2: expected whole numbers from 0 to 1"),
            ("mlp", 0, [0], 'heads=.* goes with site="head"'),
        ],
    )
    def test_what_may_not_be_asked_for(self, host, site, layers, heads, message):
        with pytest.raises(NLAError, match=message):
            find(host[2], site, layers, heads)


def test_an_architecture_that_shows_no_such_site_says_what_it_holds():
    plain = build("llama")
    for layer in plain.model.layers:
        layer.inner, layer.mixer = layer.self_attn, layer.mlp
        del layer.self_attn, layer.mlp
        layer.inner.__class__ = type("Mixer", (type(layer.inner),), {})
    model = TransformersModel(plain, tokenizer=tokenizer())
    with pytest.raises(InjectionError, match=r"no MLP found in block 0, which holds .*mixer"):
        find(model, "mlp", 0)
    with pytest.raises(InjectionError, match=r"no attention .* site=\"residual\" works"):
        find(model, "head", 0)
    assert len(find(model, "residual", "all")) == 4


def test_heads_that_do_not_tile_the_projection():
    plain = build("llama")
    plain.config.num_attention_heads = 3
    model = TransformersModel(plain, tokenizer=tokenizer())
    with pytest.raises(
        InjectionError, match=r"the 3 heads .* do not tile the 16 inputs of the attention"
    ):
        find(model, "head", 0)


@torch.no_grad()
def _hooked(plain, family, ids, site, layer, position, vector, action):
    """The last logits and the residual at (K, last), with one edit made by a forward hook."""
    stack = plain.get_submodule("transformer.h" if family == "gpt2" else "model.layers")
    kept, handles = [], []

    def changed(tensor, columns):
        tensor = tensor.clone()
        here = tensor[0, position, columns]
        tensor[0, position, columns] = {
            "write": vector,
            "add": here + vector,
            "project": here - (here @ vector) * vector,
        }[action]
        return tensor

    if site is not None:
        attention, mlp = PLACES[family]
        path = {"residual": "", "attention": attention, "mlp": mlp, "head": attention}[site]
        module = stack[layer].get_submodule(path)
        if site == "head":
            columns = slice(8, 16)  # find(...)[-1] is the second of two heads
            handles.append(
                module.register_forward_pre_hook(lambda m, args: (changed(args[0], columns),))
            )
        else:
            handles.append(
                module.register_forward_hook(lambda m, a, out: changed(out, slice(None)))
            )
    handles.append(stack[K].register_forward_hook(lambda m, a, out: kept.append(out[0, -1])))
    logits = plain(input_ids=torch.tensor([ids])).logits[0, -1]
    for handle in handles:
        handle.remove()
    return logits, kept[0]
