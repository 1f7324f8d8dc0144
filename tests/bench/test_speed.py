"""Explanations a second: the fast engine, what its peers do, and the floor.

    pytest tests/bench/test_speed.py -s                               # the tiny verbalizer
    pytest tests/bench/test_speed.py -s --size pair                   # ... with its own replies
    pytest tests/bench/test_speed.py -s --size 12x512 --batches 1,8,32,128
    pytest tests/bench/test_speed.py -s --size 8b --device cuda       # Qwen3-8B's shape, bfloat16
    pytest tests/bench/test_speed.py -s --size 8b --device cuda --compiled    # ... with CUDA graphs
    python -m tests.bench.speed_table                                 # the site's table

Weights are random but for the tiny pair's, so the model is made to reply with 40 to 150 tokens: a
hook turns its logits into a countdown, after the forward pass has done all of its work. ``pair``
alone says what it has to say about residuals of held-out texts. Who is compared, each within one
run and on the same vectors:

* **one**: one vector at a time, a hook, transformers' ``generate``;
* **fixed**: fixed batches with a hook, which wait for their longest row;
* **fast**: `NLA.explain`;
* **compiled**, with ``--compiled``: the same with the steps of `tests/bench/compiled.py`;
* **floor**: the bare forwards of the tokens that have to be computed: the prefix once, the rest of
  the prompt, and full batches until every reply has its length, the cache written in place.
"""

import copy
import gc
import operator
import statistics
import time

import pytest
import torch
from nnsight import TransformersModel
from transformers import AutoModelForCausalLM, Qwen3Config
from transformers.cache_utils import DynamicCache, StaticCache

from nnsight_nla import NLA, Checkpoint, Injection, Sampling, tiny
from nnsight_nla.checkpoint.checkpoint import AV_TEMPLATE
from nnsight_nla.models.packing import packed
from nnsight_nla.tiny.examples import collect
from nnsight_nla.tiny.facts import held_out_pairs
from nnsight_nla.verbalize.cache import in_place
from tests.bench.compiled import CompiledSteps

SHORTEST, LONGEST = 40, 150
FIRST = 100
"""The token that ends the countdown; a reply of n tokens begins with ``FIRST + n - 1``."""
AIMS = {"fixed": 2.2, "one": 12, "floor": 0.85}
"""How many times faster than each, on two threads."""
ROUNDS = 3
ALONE = 2
"""Vectors that *one* is timed on; its time goes linearly with their number."""
H100 = 3.35e12
"""Bytes a second that an H100 (SXM) reads, by its data sheet."""
STEPS = 20
"""Steps of decoding in a round, where single steps are compared."""
SMALL = Qwen3Config(
    vocab_size=1496, hidden_size=512, intermediate_size=1536, num_hidden_layers=12,
    num_attention_heads=8, num_key_value_heads=4, head_dim=64, max_position_embeddings=1024,
    tie_word_embeddings=True, eos_token_id=2, pad_token_id=0,
)  # fmt: skip


EIGHT_B = Qwen3Config(
    vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
    num_attention_heads=32, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960,
    tie_word_embeddings=False, rope_theta=1e6, eos_token_id=2, pad_token_id=0,
)  # fmt: skip


class Countdown:
    """Hooks that make every reply as long as its vector says, once the work has been done."""

    def __init__(self, model, end, marker):
        self.end, self.marker = end, marker
        model.register_forward_pre_hook(self.see, with_kwargs=True)
        model.model.layers[2].register_forward_pre_hook(self.read)
        model.get_output_embeddings().register_forward_hook(self.count)

    def see(self, module, args, kwargs):
        self.ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]

    def read(self, module, args):
        if args[0].shape[1] >= -self.marker:  # A prefill: where the vector was written.
            spread = args[0][:, self.marker, : LONGEST - SHORTEST + 1]
            self.length = SHORTEST + spread.float().argmax(-1)

    def count(self, module, args, logits):
        prefill = self.ids.shape[1] > 1
        last = FIRST + self.length if prefill else self.ids[:, -1]
        return counted(last, logits, self.end)


def counted(last, logits, end):
    """The logits of a countdown after the tokens `last`."""
    following = torch.where(last > FIRST, last - 1, end)
    logits = torch.zeros_like(logits)
    logits[torch.arange(len(last), device=last.device), -1, following] = 1
    return logits


@pytest.fixture(scope="module")
def device(request):
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="module")
def loaded(request, device):
    """The verbalizer of the asked-for size, as an NLA and as a plain model."""
    size = request.config.getoption("--size")
    _, pair = tiny.load()
    if size in ("tiny", "pair"):
        path = tiny.paths()["av"]
        module = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    else:
        config = {"12x512": SMALL, "8b": EIGHT_B}[size]
        torch.manual_seed(0)
        with torch.device(device):
            dtype = torch.bfloat16 if size == "8b" else torch.float32
            module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    module = module.to(device).eval()
    bare = copy.deepcopy(module)  # The peers' has nothing of nnsight on it.
    marker = pair.prompt.marker_position - len(pair.prompt.ids)  # Counted from the end.
    for each in (module, bare) if size != "pair" else ():
        Countdown(each, pair.av.tokenizer.eos_token_id, marker)
    av = TransformersModel(module, tokenizer=pair.av.tokenizer, task="text-generation")
    checkpoint = Checkpoint(
        layer=3, d_model=module.config.hidden_size, template=AV_TEMPLATE, marker="㈎",
        marker_id=pair.checkpoint.marker_id, injection=Injection("add", "block", 1),
    )  # fmt: skip
    nla = NLA(av, checkpoint=checkpoint, sampling=Sampling(max_new_tokens=LONGEST + 10))
    return nla, bare


def peer(nla, module, vectors, batch):
    """What other tools do: a hook that writes, ``generate``, a batch at a time."""
    ids = torch.tensor([nla.prompt.ids], device=vectors.device)
    position = nla.prompt.marker_position
    texts = []
    for rows in vectors.split(batch):
        done = []

        def write(each, args, output, rows=rows, done=done):
            if done:
                return None
            done.append(True)
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            here = hidden[:, position]
            norms = here.norm(dim=-1, keepdim=True)
            hidden[:, position] = here + norms * rows / rows.norm(dim=-1, keepdim=True)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handle = module.model.layers[1].register_forward_hook(write)
        prompts = ids.expand(len(rows), -1)
        found = module.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=False,
            max_new_tokens=LONGEST + 10, pad_token_id=0,
        )  # fmt: skip
        handle.remove()
        texts += nla.av.tokenizer.batch_decode(found[:, ids.shape[1] :], skip_special_tokens=True)
    return texts


@torch.inference_mode()
def floor(nla, lengths, batch):
    """The bare forwards: nothing is chosen, decoded or written."""
    module, prompt, start = nla.av._module, nla.prompt.ids, nla.prompt.marker_position
    ids = torch.tensor([prompt], device=module.device)
    rows = min(batch, len(lengths))
    for _ in range(-(-len(lengths) // batch)):
        cache = DynamicCache(config=module.config)
        module(input_ids=ids[:, :start], past_key_values=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(rows)
        rest = ids[:, start:].expand(rows, -1)
        module(input_ids=rest, past_key_values=cache, logits_to_keep=1)
        cache = in_place(cache, torch.arange(rows), len(prompt) + LONGEST)
        # Of n tokens the prefill gives the first, and the last is not run.
        for _ in range(round(sum(lengths) / len(lengths)) - 1):
            module(input_ids=rest[:, :1], past_key_values=cache)


def bandwidth(device):
    """Bytes a second, read and written by a copy that no cache holds."""
    source = torch.empty(1 << 28 if device.type == "cuda" else 1 << 26, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(5):
        taken, _ = timed(lambda: target.copy_(source), device)
        times.append(taken)
    return 2 * source.nbytes / min(times)


def roofline(nla, batch, device):
    """Tokens a second if a step cost nothing but reading weights and keys and values."""
    config, module = nla.av._module.config, nla.av._module
    weights = sum(each.nbytes for each in module.model.layers.parameters())
    weights += module.get_output_embeddings().weight.nbytes
    length = len(nla.prompt.ids) + (SHORTEST + LONGEST) / 2 / 2
    kept = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    cached = batch * length * kept * module.dtype.itemsize
    return batch / ((weights + cached) / bandwidth(device))


def timed(run, device):
    gc.collect()
    start = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def read_or_drawn(request, nla, count, generator):
    """Vectors to explain: drawn, or the pair's own."""
    if request.config.getoption("--size") != "pair":
        return torch.randn(count, nla.checkpoint.d_model, generator=generator)
    model, _ = tiny.load()
    held = collect(model, sorted(held_out_pairs()), documents=-(-count // 3), seed=1)
    return held.vectors[:count]


def compiled_steps(request, nla, bare, device):
    """What decodes with ``--compiled``; ``None`` without it."""
    if not request.config.getoption("--compiled"):
        return None
    end, options = nla.av.tokenizer.eos_token_id, {}
    if request.config.getoption("--size") != "pair":
        options["written"] = lambda ids, logits: counted(ids[:, -1], logits, end)
    return CompiledSteps(
        bare, mode="reduce-overhead" if device.type == "cuda" else "default", **options
    )


def compiled_line(steps, monkeypatch, nla, vectors, device):
    """Explanations a second with compiled steps, by turns with the engine's."""
    seconds, expected = {"engine": [], "compiled": []}, nla.explain(vectors).raw

    def run(name):
        thought = nla.explain(vectors)
        taken, _ = timed(lambda: nla.resolve(thought), device)
        assert thought.raw == expected
        seconds[name].append(taken)

    with steps.decoding(monkeypatch):
        for _ in range(2):  # A CUDA graph is recorded in the second run.
            run("compiled")
    compiling = sum(seconds["compiled"])
    seconds["compiled"].clear()
    for _ in range(ROUNDS):
        run("engine")
        with steps.decoding(monkeypatch):
            run("compiled")
    best = {name: min(each) for name, each in seconds.items()}
    return (
        f"      compiled steps: {len(vectors) / best['compiled']:.2f} explanations a second, x "
        f"{best['engine'] / best['compiled']:.2f} of the engine's, after {compiling:.0f} s"
    )


def test_explanations_a_second(loaded, device, request, capsys, monkeypatch):
    nla, bare = loaded
    if request.config.getoption("--unpacked"):
        monkeypatch.setattr("nnsight_nla.models.packing.available", lambda: False)
    generator = torch.Generator().manual_seed(1)
    lines, ratios = [], {}
    steps = compiled_steps(request, nla, bare, device)
    for batch in map(int, request.config.getoption("--batches").split(",")):
        count = max(batch, 2)
        vectors = read_or_drawn(request, nla, count, generator).to(device)
        nla.batch_size = batch
        seconds = {"one": [], "fixed": [], "fast": [], "floor": []}
        for _ in range(ROUNDS):
            thought = nla.explain(vectors)
            taken, _ = timed(lambda thought=thought: nla.resolve(thought), device)
            seconds["fast"].append(taken / count)
            replies = thought._capture.replies
            lengths = [replies[row, 0].new_tokens for row in range(count)]
            taken, _ = timed(lambda n=lengths, b=batch: floor(nla, n, b), device)
            seconds["floor"].append(taken / count)
            taken, texts = timed(lambda v=vectors, b=batch: peer(nla, bare, v, b), device)
            seconds["fixed"].append(taken / count)
            assert texts == [replies[row, 0].raw for row in range(count)]
            alone = vectors[:ALONE] if batch > 1 else vectors
            taken, _ = timed(lambda v=alone: peer(nla, bare, v, 1), device)
            mean = sum(lengths[: len(alone)]) / len(alone)
            # Scaled to the batch's mean length, the two being its first rows.
            seconds["one"].append(taken / len(alone) * sum(lengths) / count / mean)
        if steps is not None:
            lines.append(compiled_line(steps, monkeypatch, nla, vectors, device))
        best = {name: statistics.median(each) for name, each in seconds.items()}
        ratio = {
            name: statistics.median(map(operator.truediv, seconds[name], seconds["fast"]))
            for name in ("one", "fixed", "floor")
        }
        ratios[batch] = ratio
        lines.append(
            f"{batch:5d} {1 / best['fast']:8.2f} {1 / best['fixed']:8.2f} {1 / best['one']:8.2f} "
            f"{1 / best['floor']:8.2f}   x{ratio['fixed']:5.2f} x{ratio['one']:6.2f} "
            f"x{ratio['floor']:5.2f}   {min(lengths)} to {max(lengths)}"
        )
    size = request.config.getoption("--size")
    tokens = statistics.mean(lengths) / best["fast"]
    with capsys.disabled():
        print(
            f"\nexplanations a second, {size} on {device} with {torch.get_num_threads()} threads, "
            f"medians of {ROUNDS}\n"
            "batch     fast    fixed      one    floor     fixed     one  floor   new tokens"
        )
        print("\n".join(lines))
        print(
            f"batch {batch}: {tokens:.0f} tokens/s; reading the weights and the cache once a step "
            f"at the {bandwidth(device) / 1e9:.0f} GB/s measured here allows "
            f"{roofline(nla, batch, device):.0f}"
        )
        print(f"aims at 32 rows and more, 12x512: {AIMS}")
    for batch, ratio in ratios.items():
        # Smaller batches can be of rows that are all of one length.
        usual = size == "12x512" and not request.config.getoption("--unpacked")
        least = AIMS if usual and device.type == "cpu" else {"fixed": 1}
        assert batch < 32 or all(ratio[name] >= aim for name, aim in least.items())


@torch.inference_mode()
def test_what_refilling_would_give(loaded, device, request, capsys):
    """Rows that leave, against full batches in which waiting vectors take their places.

    A place taken in mid-decode holds columns of the row before, so every step needs a mask; the
    cache is as long as the oldest row in it. Bare forwards of both, with the same lengths.
    """
    nla, batch = loaded[0], 32
    module, prompt = nla.av._module, nla.prompt.ids
    ids = torch.tensor([prompt], device=device).expand(batch, -1)
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (batch,), generator=generator).sort()[0].tolist()

    def prefilled(extra):
        cache = DynamicCache(config=module.config)
        module(input_ids=ids, past_key_values=cache, logits_to_keep=1)
        return in_place(cache, torch.arange(batch), len(prompt) + LONGEST + extra)

    def leaving():
        cache, left = prefilled(0), lengths
        for step in range(1, LONGEST):
            still = [length for length in left if length > step]
            if not still:
                return
            if len(still) < len(left):
                cache.reorder_cache(torch.arange(len(still)))
            left = still
            module(input_ids=ids[: len(left), :1], past_key_values=cache)

    def refilled():
        cache, steps = prefilled(LONGEST), round(sum(lengths) / batch) - 1
        for layer in cache.layers:  # The oldest row has nearly all of its reply behind it.
            layer.length += LONGEST - steps
            layer._show(batch)
        for _ in range(steps):
            length = cache.get_seq_length() + 1
            mask = torch.ones(batch, 1, 1, length, dtype=torch.bool, device=device)
            mask[::2, ..., : LONGEST // 2] = False
            module(
                input_ids=ids[:, :1], past_key_values=cache, attention_mask=mask,
                position_ids=torch.full((batch, 1), length - 1, device=device),
            )  # fmt: skip

    rounds = []
    for _ in range(ROUNDS):
        with packed(module, batch):
            prefill, _ = timed(lambda: prefilled(0), device)
            rounds.append([timed(run, device)[0] - prefill for run in (leaving, refilled)])
    gained = statistics.median(left / full for left, full in rounds)
    with capsys.disabled():
        print(
            f"\n{batch} rows of {lengths[0]} to {lengths[-1]} tokens, decoding alone: rows that "
            f"leave {statistics.median(left for left, _ in rounds):.2f} s, places taken again "
            f"{statistics.median(full for _, full in rounds):.2f} s: a factor of {gained:.2f}"
        )
    assert gained > 0


@torch.no_grad()
def test_what_a_step_costs_before_any_arithmetic(device, capsys):
    """The host's time for a step as deep as an 8B model, so narrow that arithmetic costs little.

    On a GPU the host issues these operations one by one. Where they take longer than reading the
    weights, a CUDA graph, which issues them all at once, has something to gain.
    """
    narrow = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16}
    with torch.device("meta"):
        read = 2 * sum(
            each.numel() for each in AutoModelForCausalLM.from_config(EIGHT_B).parameters()
        )
    read -= 2 * EIGHT_B.vocab_size * EIGHT_B.hidden_size  # The embedding is looked up.
    config = Qwen3Config(**{**EIGHT_B.to_dict(), **narrow, **heads})
    with torch.device(device):
        module = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    token, cache = torch.ones(1, 1, dtype=torch.long, device=device), DynamicCache(config=config)
    module(input_ids=token, past_key_values=cache)
    cache = in_place(cache, torch.arange(1), 1000)
    taken = []
    for _ in range(5 * STEPS):
        start = time.process_time()
        module(input_ids=token, past_key_values=cache)
        taken.append(1000 * (time.process_time() - start))
    host = statistics.median(taken)
    with capsys.disabled():
        print(
            f"\na step of {EIGHT_B.num_hidden_layers} layers: {host:.1f} ms of the host; reading "
            f"{read / 1e9:.1f} GB of weights takes {read / H100 * 1000:.1f} ms on an H100"
        )
    assert host > 0


@torch.no_grad()
def test_what_a_static_cache_and_compiling_would_give(loaded, device, request, capsys):
    """One step of a full batch: the engine's, transformers' static cache, and that compiled.

    A compiled step is made for one number of rows, so rows that leave would want several.
    """
    nla, bare = loaded
    batch = int(request.config.getoption("--batches").split(",")[0])
    module = copy.deepcopy(bare)
    for each in module.modules():  # The countdown's hooks cannot be compiled.
        each._forward_hooks.clear()
        each._forward_pre_hooks.clear()
    ids = torch.tensor([nla.prompt.ids], device=device).expand(batch, -1)
    capacity = ids.shape[1] + LONGEST
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    compiled = torch.compile(module.forward, mode=mode)

    def stepping(forward, cache):
        module(input_ids=ids, past_key_values=cache, logits_to_keep=1)
        if isinstance(cache, DynamicCache):
            cache = in_place(cache, torch.arange(batch), capacity)
        token = ids[:, :1].contiguous()

        def step():
            return forward(input_ids=token, past_key_values=cache, use_cache=True).logits

        return step

    steps = {
        "engine": stepping(module, DynamicCache(config=module.config)),
        "static": stepping(module, StaticCache(config=module.config, max_cache_len=capacity)),
        "compiled": stepping(compiled, StaticCache(config=module.config, max_cache_len=capacity)),
    }
    found, first, seconds = {}, {}, {name: [] for name in steps}
    with packed(module, batch):
        found["engine"] = steps["engine"]().clone()
    for name in ("static", "compiled"):
        first[name], logits = timed(steps[name], device)
        found[name] = logits.clone()
        steps[name]()  # A second pass may compile once more.
    for _ in range(ROUNDS):
        for name, step in steps.items():
            with packed(module, batch if name == "engine" else 1):
                taken, _ = timed(lambda step=step: [step() for _ in range(STEPS)], device)
            seconds[name].append(taken / STEPS)
    best = {name: 1000 * statistics.median(each) for name, each in seconds.items()}
    with capsys.disabled():
        print(
            f"\na step of {batch} rows, {request.config.getoption('--size')} on {device}: the "
            f"engine's {best['engine']:.1f} ms, with a static cache {best['static']:.1f} ms, "
            f"compiled {best['compiled']:.1f} ms after {first['compiled']:.0f} s of compiling"
        )
    close = 1e-4 if module.dtype == torch.float32 else 5e-2
    for name in ("static", "compiled"):
        scale = found["engine"].abs().max()
        assert (found[name] - found["engine"]).abs().max() < close * scale
