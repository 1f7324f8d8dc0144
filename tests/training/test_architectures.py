"""Every supported architecture trains a step, as AV and AR, all weights or adapters; and loads."""

import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM

from nnsight_nla import NLA, Checkpoint, Injection, Sampling
from nnsight_nla.core.injection import norm_matched_add
from nnsight_nla.training import (
    INJECT,
    Lora,
    Settings,
    save_reconstructor,
    save_verbalizer,
    train_reconstructor,
    train_verbalizer,
)
from nnsight_nla.training.rows import collate, verbalizer_rows
from nnsight_nla.training.verbalizer import response_logits, writing
from tests.checkpoint.test_prompt import tokenizer
from tests.verbalize.test_architectures import FAMILIES, TEMPLATE, D, K, build, plain_blocks

AR = "Text: {explanation} ="
STEP = {"steps": 1, "batch_size": 2, "learning_rate": 1e-2, "warmup": 0}
KINDS = {"full": None, "lora": Lora(rank=2, alpha=4)}
TEXTS = ["About Paris.", "Nothing."]
VECTORS = torch.randn(2, D, generator=torch.Generator().manual_seed(5))


def described(live) -> Checkpoint:
    return Checkpoint(
        layer=K, d_model=D, template=TEMPLATE, marker="㈎", marker_id=257,
        injection=Injection("add", "block", 1), ar_template=AR,
    )  # fmt: skip


def rows():
    prompt = [{"role": "user", "content": TEMPLATE.replace("{injection_char}", INJECT)}]
    return [
        {
            "prompt": prompt,
            "response": f"<explanation>\n{t}\n</explanation>",
            "activation_vector": v,
        }
        for t, v in zip(TEXTS, VECTORS, strict=True)
    ]


def stored(family: str, folder):
    """A base in a folder, as a user has one, and the live model of it."""
    build(family).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_step_as_av_and_ar(family, kind, tmp_path):
    live = tokenizer()
    checkpoint = described(live)
    for activations, role in (("recompute", "av"), ("keep", "ar")):
        # An adapter names its base, so that one lies in a folder, as a user's does.
        model = stored(family, tmp_path / "base") if kind == "lora" else build(family)
        blocks = plain_blocks(model, family)
        settings = Settings(**STEP, lora=KINDS[kind], activations=activations)
        before = [(each, each.detach().clone()) for each in blocks.parameters()]
        trainer = train_verbalizer if role == "av" else train_reconstructor
        trained = trainer(model, live, rows(), checkpoint, settings)
        adapters = [n for n, p in trained.named_parameters() if "lora_" in n and p.requires_grad]
        assert bool(adapters) == (kind == "lora")
        assert not any("vision" in name for name in adapters)
        changed = [not torch.equal(now, then) for now, then in before]
        assert any(changed) == (kind == "full")
        if kind == "full" and family != "gemma3 in its wrapper":
            continue  # Whole checkpoints are loaded in test_run.py; this one is special.
        save = save_verbalizer if role == "av" else save_reconstructor
        save(tmp_path / role, trained, live, checkpoint)
        with torch.no_grad():
            if role == "ar":
                ids = [live.encode(AR.replace("{explanation}", text)) for text in TEXTS]
                expected = torch.cat(
                    [trained(torch.tensor([x]), torch.tensor([len(x) - 1])) for x in ids]
                )
            else:
                batch = collate([verbalizer_rows(rows(), live, checkpoint)[0][0]])
                said = _written(trained, batch, checkpoint, live)
    if not (tmp_path / "av").exists():
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nla = NLA(tmp_path / "av", ar=tmp_path / "ar", checkpoint=checkpoint, dtype=torch.float32)
        found = nla.reconstruct(TEXTS)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        thought = nla.explain(VECTORS[0], sampling=Sampling(max_new_tokens=1))
        # The first token that inference writes is the one that training finds most likely.
        token = said[0, 0].argmax()
        assert thought.raw == live.decode([token], skip_special_tokens=True)


def _written(model, batch, checkpoint, live):
    from nnsight_nla.checkpoint.prompt import Prompt

    prompt = Prompt.render(checkpoint, live)
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    with writing(plain, prompt.sites, checkpoint.injection) as hook:
        hook.vectors = batch["vectors"]
        return response_logits(model, batch, len(prompt.ids))


def test_several_markers_are_all_written_in_training():
    live = tokenizer()
    checkpoint = Checkpoint(
        layer=K, d_model=D, template="Say <c>{injection_char}</c> and <c>{injection_char}</c>.",
        marker="㈎", marker_id=257,
    )  # fmt: skip
    from nnsight_nla.checkpoint.prompt import Prompt

    prompt, model = Prompt.render(checkpoint, live), build("qwen3")
    assert len(prompt.sites) == 2
    seen = []
    with writing(model, prompt.sites, checkpoint.injection) as hook:
        block = plain_blocks(model, "qwen3")[2]
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        with torch.no_grad():
            model(torch.tensor([prompt.ids]))
            hook.vectors = VECTORS[:1]
            model(torch.tensor([prompt.ids]))
    for site in range(len(prompt.ids)):
        silent, loud = (each[0, site] for each in seen)
        written = norm_matched_add(silent, VECTORS[0])
        torch.testing.assert_close(loud, written if site in prompt.sites else silent)
