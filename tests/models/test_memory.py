"""Who is in memory when: measured in bytes of tensors, and bit for bit the same afterwards."""

import gc
import importlib.util
import weakref

import pytest
import torch
from nnsight import TransformersModel
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from nnsight_nla import NLA, CheckpointError, Sampling, VerbalizationError, tiny
from nnsight_nla.models import memory
from nnsight_nla.models.memory import Parked, free_bytes, free_for, size, unload

PATHS = tiny.paths()
PROMPT = "What a lovely day! People in Paris speak"
SHORT = Sampling(max_new_tokens=6)


def load(**options) -> TransformersModel:
    options = {"dtype": torch.float32, "dispatch": True, **options}
    return TransformersModel(str(PATHS["target"]), task="text-generation", **options)


@pytest.fixture
def target():
    return load()


def pair(**options) -> NLA:
    options = {"dtype": torch.float32, "sampling": SHORT, **options}
    return NLA(PATHS["av"], ar=PATHS["ar"], **options)


def sequential(target, **options) -> NLA:
    return pair(placement="sequential", target=target, **options)


def tensors(model):
    return [*model._module.parameters(), *model._module.buffers()]


def held(model) -> int:
    """The bytes that a model's tensors hold in memory."""
    return sum(each.nbytes for each in tensors(model) if each.device.type != "meta")


def logits(model) -> torch.Tensor:
    with model.trace(PROMPT):
        found = model.lm_head.output.detach().save()
    return found


def anatomy(model) -> list:
    """What of a model must be the same afterwards, its memory's address apart."""
    named = [*model._module.named_parameters(), *model._module.named_buffers()]
    return [
        (name, id(each), each.requires_grad, each.dtype, each.device, each.shape, each.stride())
        for name, each in named
    ]


class Watch:
    """The bytes of several models at every forward pass of block 1 of one of them."""

    def __init__(self, runs, *others, fails: BaseException | None = None) -> None:
        self.seen: list[list[int]] = []
        self.models, self.fails = (runs, *others), fails
        runs.dispatch()
        self.hook = runs.model.layers[1]._module.register_forward_hook(self)

    def __call__(self, module, args, output) -> None:
        self.seen.append([held(each) for each in self.models])
        if self.fails is not None and len(self.seen) == 2:
            raise self.fails


def test_tensors_leave_and_come_back_bit_for_bit():
    module = nn.Module()
    module.first = nn.Linear(64, 48, dtype=torch.bfloat16)
    module.tied = nn.Linear(64, 48, bias=False)
    module.tied.weight = module.first.weight
    whole = torch.randn(40, 30)
    module.columns = nn.Parameter(whole[:, 3:9], requires_grad=False)
    module.rows = nn.Parameter(whole.T[2:5], requires_grad=False)
    module.register_buffer("mask", torch.rand(7) > 0.5)
    module.register_buffer("steps", torch.tensor(3), persistent=False)
    module.register_buffer("empty", torch.empty(0, 4))
    module.first.weight.data[0, 0] = float("nan")
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    before = {name: each.detach().clone() for name, each in named.items()}
    shapes = {name: (each.shape, each.stride(), each.dtype) for name, each in named.items()}
    del whole
    gc.collect()
    parked = Parked()
    parked.leave(module, set())
    assert sum(each.nbytes for each in named.values()) == 0
    with pytest.raises(RuntimeError):
        module.first(torch.ones(1, 64, dtype=torch.bfloat16))
    parked.back()
    for name, each in named.items():
        assert (each.shape, each.stride(), each.dtype) == shapes[name]
        assert torch.equal(each.nan_to_num(7.0), before[name].nan_to_num(7.0))
    assert module.tied.weight is module.first.weight
    assert module.first.weight.requires_grad
    assert not module.columns.requires_grad
    module.columns.data[2, 0] = 99  # One memory under two views, as it was.
    assert module.rows.data[1, 2] == 99
    parked.back()  # Nothing is left to do.


@pytest.mark.parametrize("where", ["_write", "_read"])
def test_a_move_that_is_cut_short_loses_nothing(where, monkeypatch):
    torch.manual_seed(0)
    module = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    before = {name: each.clone() for name, each in module.state_dict().items()}
    parked, calls = Parked(), []
    inner = getattr(Parked, where)

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return inner(self, *arguments)

    monkeypatch.setattr(Parked, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        parked.leave(module, set())
        parked.back()
    assert any(each.numel() == 0 for each in module.parameters())
    parked.back()
    for name, each in module.state_dict().items():
        assert torch.equal(each, before[name])


def test_the_larger_and_not_the_sum_is_in_memory(target):
    nla, whole = sequential(target), held(target)
    vectors = torch.randn(2, 128)
    watch = Watch(nla.av, target)
    thought = nla.explain(vectors)
    texts = thought.raw
    av = watch.seen[0][0]
    assert av > 1e6
    assert watch.seen == [[av, 0]] * len(watch.seen)
    assert len(watch.seen) >= 2
    assert [held(each) for each in (target, nla.av, nla.ar)] == [whole, 0, 0]
    watch = Watch(nla.ar, target, nla.av)
    nla.reconstruct("About Paris.")
    assert [seen[1:] for seen in watch.seen] == [[0, 0]]
    assert [held(each) for each in (target, nla.av, nla.ar)] == [whole, 0, 0]
    together = pair()
    watch = Watch(together.av, target)
    assert together.explain(vectors).raw == texts
    assert watch.seen[0] == [av, whole]


def test_the_target_comes_back_bit_for_bit(target):
    calls = []
    target._module.model.layers[1].register_forward_hook(lambda *_: calls.append(1))
    with target.edit(inplace=True):
        target.model.layers[2].output[:] *= 1.5
    target._module.model.layers[0].mlp.down_proj.weight.data.mul_(1.1)  # In no checkpoint.
    envoy, before, whole = target.model.layers[3], logits(target), anatomy(target)
    nla = sequential(target)
    with target.trace(PROMPT):
        thought = nla.explain(nla.layer(target).output[0, -1])
    text = thought.text
    assert anatomy(target) == whole
    calls.clear()
    assert torch.equal(logits(target), before)
    assert calls
    assert target.model.layers[3] is envoy
    assert pair().explain(thought.vectors).text == text


@pytest.mark.parametrize(
    "error", [RuntimeError("now"), torch.OutOfMemoryError("now"), KeyboardInterrupt()]
)
def test_it_comes_back_after_an_error(target, error):
    before, whole = logits(target), anatomy(target)
    nla = sequential(target)
    watch = Watch(nla.av, target, fails=error)
    thought = nla.explain(torch.randn(128))
    kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else VerbalizationError
    with pytest.raises(kind):
        _ = thought.text
    assert len(watch.seen) == 2
    assert anatomy(target) == whole
    assert torch.equal(logits(target), before)
    assert not nla.av.dispatched
    assert nla.pending == (thought,)
    assert thought.raw


def test_no_room_on_the_disk_leaves_the_target_there(target, monkeypatch):
    before, nla = logits(target), sequential(target)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Parked, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        _ = nla.explain(torch.randn(128)).text
    assert torch.equal(logits(target), before)
    assert not nla.av.dispatched


def test_targets_are_those_of_layer_and_are_held_weakly(target):
    nla = pair(placement="sequential")
    watch = Watch(nla.av, target)
    _ = nla.explain(torch.randn(128)).text
    assert watch.seen[0][1] == held(target)  # Nobody said that it is a target.
    nla.layer(target)
    watch = Watch(nla.av, target)
    _ = nla.explain(torch.randn(128)).text
    assert watch.seen[0][1] == 0
    gone = weakref.ref(target)
    other = load()
    nla.layer(other)
    watch.models = ()
    del target, other
    assert nla.explain(torch.randn(128)).raw
    assert gone() is not None  # The fixture's; the other one is the test's own.
    assert len(nla._memory._targets) == 1


def test_a_text_inside_a_trace_of_a_target_that_would_have_to_go(target):
    nla = sequential(target)
    with pytest.raises(VerbalizationError, match=r"A trace is running on .*after the `with` block"):
        with target.trace(PROMPT):
            thought = nla.explain(nla.layer(target).output[0, -1])
            _ = thought.text
    assert held(target) > 0
    assert logits(target).isfinite().all()


def test_live_halves_make_room_and_come_back(target):
    av = TransformersModel(
        str(PATHS["av"]), task="text-generation", dispatch=True, dtype=torch.float32
    )
    nla = NLA(av, ar=PATHS["ar"], placement="sequential", target=target, sampling=SHORT)
    thought = nla.explain(torch.randn(128))
    texts, whole, mine = thought.raw, held(av), anatomy(av)
    watch = Watch(nla.ar, av, target)
    nla.reconstruct("About Paris.")
    assert [seen[1:] for seen in watch.seen] == [[0, 0]]
    assert held(av) == whole
    assert anatomy(av) == mine
    assert nla.explain(thought.vectors).raw == texts
    nla.unload()
    assert held(av) == whole


def test_an_adapter_on_the_target_stays_with_it(target, tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(PATHS["target"]), config).save_pretrained(
        tmp_path
    )
    sidecar = (PATHS["av"] / "nla_meta.yaml").read_text("utf-8")
    (tmp_path / "nla_meta.yaml").write_text(sidecar, "utf-8")
    nla = NLA.on(
        target, tmp_path, ar=PATHS["ar"], placement="sequential", sampling=SHORT,
        dtype=torch.float32,
    )  # fmt: skip
    before, vector = logits(target), torch.randn(128)
    texts = nla.explain(vector).raw
    watch = Watch(nla.ar, target)
    nla.reconstruct("About Paris.")
    assert [seen[1] for seen in watch.seen] == [0]
    assert not nla.av.dispatched  # It would keep the target's memory.
    assert nla.explain(vector).raw == texts
    assert torch.equal(logits(target), before)


def test_unload_drops_weights_and_keeps_handles():
    nla = pair()
    done, open_ = nla.explain(torch.randn(2, 128)), nla.explain(torch.ones(128))
    nla.resolve(done)
    nla.reconstruct("About Paris.")
    texts, block = done.raw, nla.av.model.layers[1]
    weights = [weakref.ref(tensors(each)[0]) for each in (nla.av, nla.ar)]
    nla.unload()
    assert [weight() for weight in weights] == [None, None]
    assert [held(each) for each in (nla.av, nla.ar)] == [0, 0]
    assert not nla.info()["weights_loaded"]
    assert done.raw == texts
    assert nla.pending == (open_,)
    assert nla.explain(done.vectors).raw == texts
    assert open_.raw
    assert nla.av.model.layers[1] is block
    nla.unload()
    nla.unload()


def test_unload_while_a_trace_runs_on_it():
    nla = pair()
    with pytest.raises(VerbalizationError, match=r"A trace is running on .*av"):
        with nla.av.trace(PROMPT):
            _ = nla.av.model.layers[0].output
            nla.unload()
    assert nla.av.dispatched
    assert nla.explain(torch.randn(128)).raw


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_estimate_is_what_is_held(dtype):
    model = load(dtype=dtype, dispatch=False)
    estimate = size(model)
    model.dispatch()
    assert estimate == held(model)
    assert size(model) == 0


def test_the_estimate_of_a_quantized_load_counts_what_stays_wide():
    model = load(dtype="int8", dispatch=False)
    module = model._module
    blocks = sum(
        each.weight.numel() for each in module.model.layers.modules() if isinstance(each, nn.Linear)
    )
    wide = sum(each.numel() for each in module.parameters()) - blocks
    buffers = sum(each.numel() for each in module.buffers())
    for name, width in (("int8", 1), ("nf4", 0.5)):
        expected = blocks * width + 2 * (wide + buffers)
        assert size(load(dispatch=False), name) == pytest.approx(expected, abs=1)
    assert size(model) == pytest.approx(blocks + 2 * (wide + buffers), abs=1)


@pytest.mark.parametrize(
    ("mode", "free", "says"),
    [
        ("together", 6e6, "They fit one at a time: NLA(..., placement='sequential')."),
        ("together", 1e6, "One at a time they do not fit either: 6.5 MB would be free."),
        ("sequential", 1e6, "One at a time they do not fit either: 6.5 MB would be free."),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_loaded(target, monkeypatch, mode, free, says):
    nla = pair(placement=mode, dtype=torch.float64)
    nla.layer(target)
    before, needed = logits(target), size(nla.av)
    assert 1e6 + held(target) < needed < 6e6 + held(target)
    monkeypatch.setattr(Parked, "leave", lambda *_: pytest.fail("was moved"))
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(free))
    monkeypatch.setattr(TransformersModel, "dispatch", lambda self: pytest.fail("was loaded"))
    thought = nla.explain(torch.randn(128))
    with pytest.raises(CheckpointError) as no:
        _ = thought.text
    message = str(no.value)
    start = f"The verbalizer {PATHS['av']} needs {needed / 1e6:.1f} MB on cpu, where "
    assert message.startswith(f"{start}{free / 1e6:.1f} MB are free.")
    assert says in message
    takes = f"The target {PATHS['target']} takes {held(target) / 1e6:.1f} MB."
    assert takes in message
    for typed in ("dtype='int8'", "dtype='nf4'", "NLA.on(model, av=...)", "remote=True"):
        assert typed in message
    assert nla.pending == (thought,)
    monkeypatch.undo()
    assert torch.equal(logits(target), before)
    assert thought.raw


def test_free_memory_is_measured():
    kept = free_bytes(torch.device("cpu"))
    assert 1e7 < kept < 1e14


def test_room_is_looked_for_where_the_weights_will_go(monkeypatch):
    """A batch is sized before the verbalizer is loaded, and not by the memory of the CPU."""
    free = {"cpu": 100, "cuda:0": 7, "cuda:1": 5}
    monkeypatch.setattr(memory, "free_bytes", lambda device: free[str(device)])
    assert free_for(pair().av) == 100
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert free_for(pair(device_map="auto").av) == 12
    assert free_for(pair(device_map="cuda:1").av) == 5
    assert free_for(pair(device_map=1).av) == 5
    assert free_for(pair(device_map="cpu").av) == 100


def test_a_placement_that_is_none():
    with pytest.raises(CheckpointError, match=r"^placement='later': expected 'together' or 'seq"):
        pair(placement="later")


class Packed(nn.Parameter):
    """Stands for a quantized tensor, which has state beside its memory."""


def test_a_quantized_target_cannot_make_room(target):
    layer = target._module.model.layers[0].mlp.down_proj
    layer.weight = Packed(layer.weight.data)
    nla, before = sequential(target), logits(target)
    with pytest.raises(
        CheckpointError, match=r"has tensors of type Packed; placement=.sequential. moves plain"
    ):
        _ = nla.explain(torch.randn(128)).text
    assert torch.equal(logits(target), before)


@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_a_quantized_load_reaches_nnsight(dtype, monkeypatch):
    nla, asked = NLA(PATHS["av"], dtype=dtype, sampling=SHORT), []

    def pipeline(task, **options):
        asked.append(options["model_kwargs"]["quantization_config"])
        raise ImportError("Using `bitsandbytes` needs it: `pip install -U bitsandbytes`")

    monkeypatch.setattr("transformers.pipeline", pipeline)
    thought = nla.explain(torch.randn(128))
    with pytest.raises(CheckpointError, match=rf"dtype='{dtype}'.*\(pip install bitsandbytes\)"):
        _ = thought.text
    assert asked[0].load_in_8bit == (dtype == "int8")
    assert asked[0].load_in_4bit == (dtype == "nf4")
    assert nla.pending == (thought,)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="it is installed")
def test_a_quantized_load_without_its_library():
    nla = NLA(PATHS["av"], ar=PATHS["ar"], dtype="nf4", sampling=SHORT)
    with pytest.raises(CheckpointError, match=r"cannot be loaded as dtype='nf4': .*pip install"):
        _ = nla.explain(torch.randn(128)).text
    with pytest.raises(CheckpointError, match=r"cannot be loaded as dtype='nf4': .*pip install"):
        nla.reconstruct("About Paris.")


def test_unload_of_a_model_that_is_not_loaded():
    model = load(dispatch=False)
    unload(model)
    assert not model.dispatched
