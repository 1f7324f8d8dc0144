"""Every public method with odd arguments: a usable result or one of the package's errors."""

import inspect
import math
import warnings

import numpy as np
import pytest
import torch

from nnsight_nla import Baseline, Checkpoint, NLAError, Sampling, bulk
from nnsight_nla.experiments import ablate, logit_difference, patch, steer

ODD = {
    "None": None,
    "True": True,
    "0": 0,
    "-1": -1,
    "2.5": 2.5,
    "nan": math.nan,
    "empty string": "",
    "string": "last",
    "null byte": "\x00",
    "surrogate": "\ud800",
    "bytes": b"abc",
    "empty list": [],
    "list of None": [None, None],
    "nested list": [[["a"]]],
    "dict": {"a": 1},
    "set": {1, 2},
    "object": object(),
    "class": int,
    "function": len,
    "generator": (each for each in "ab"),
    "empty tensor": torch.empty(0),
    "scalar tensor": torch.tensor(1.0),
    "narrow tensor": torch.randn(2, 3),
    "int tensor": torch.ones(2, 128, dtype=torch.int64),
    "bool tensor": torch.ones(128, dtype=torch.bool),
    "complex tensor": torch.ones(128, dtype=torch.complex64),
    "sparse tensor": torch.eye(128).to_sparse(),
    "meta tensor": torch.empty(2, 128, device="meta"),
    "numpy": np.ones((2, 128), np.float32),
    "exception": ValueError("x"),
}

PROMPTS = ("People in Paris speak", "People in Rome speak")
SWEEP = {"layers": [3], "positions": [-1], "metric": logit_difference(" French", " Italian")}
CALLS = {
    "explain(vectors)": lambda nla, model, v, h, odd: nla.explain(odd).errors,
    "explain(tokens=)": lambda nla, model, v, h, odd: nla.explain(v, tokens=odd).tokens,
    "explain(positions=)": lambda nla, model, v, h, odd: nla.explain(v, positions=odd).positions,
    "explain(samples=)": lambda nla, model, v, h, odd: nla.explain(v, samples=odd).samples,
    "explain(sampling=)": lambda nla, model, v, h, odd: nla.explain(v, sampling=odd).raw,
    "resolve": lambda nla, model, v, h, odd: nla.resolve(odd),
    "layer": lambda nla, model, v, h, odd: nla.layer(odd),
    "positions(model)": lambda nla, model, v, h, odd: nla.positions(odd, ["a"]),
    "positions(prompts)": lambda nla, model, v, h, odd: nla.positions(model, odd),
    "read(model)": lambda nla, model, v, h, odd: nla.read(odd, "Rome is"),
    "read(prompt)": lambda nla, model, v, h, odd: nla.read(model, odd, positions=[-1]),
    "read(positions=)": lambda nla, model, v, h, odd: nla.read(model, "Rome is", positions=odd),
    "read(generate=)": lambda nla, model, v, h, odd: nla.read(
        model, "Rome", generate=odd, positions=[-1]
    ),
    "reconstruct": lambda nla, model, v, h, odd: nla.reconstruct(odd),
    "score(explanation)": lambda nla, model, v, h, odd: nla.score(odd, v),
    "score(vectors)": lambda nla, model, v, h, odd: nla.score(h, odd),
    "score(baseline=)": lambda nla, model, v, h, odd: nla.score(h, baseline=odd),
    "score(failures=)": lambda nla, model, v, h, odd: nla.score(h, failures=odd),
    "trust": lambda nla, model, v, h, odd: nla.trust(odd),
    "claims(explanation)": lambda nla, model, v, h, odd: nla.claims(odd, v),
    "claims(by=)": lambda nla, model, v, h, odd: nla.claims(h, by=odd),
    "direction(to=)": lambda nla, model, v, h, odd: nla.direction(to=odd),
    "direction(away_from=)": lambda nla, model, v, h, odd: nla.direction(
        to="About Rome.", away_from=odd
    ),
    "direction(norm=)": lambda nla, model, v, h, odd: nla.direction(to="About Rome.", norm=odd),
    "compare": lambda nla, model, v, h, odd: nla.compare(h, odd),
    "controls(n)": lambda nla, model, v, h, odd: nla.controls(odd),
    "controls(like=)": lambda nla, model, v, h, odd: nla.controls(1, like=odd),
    "controls(seed=)": lambda nla, model, v, h, odd: nla.controls(1, seed=odd),
    "doctor(model)": lambda nla, model, v, h, odd: nla.doctor(odd),
    "batch_size": lambda nla, model, v, h, odd: setattr(nla, "batch_size", odd),
    "patch(model)": lambda nla, model, v, h, odd: patch(odd, nla, PROMPTS[0], PROMPTS[1], **SWEEP),
    "patch(clean)": lambda nla, model, v, h, odd: patch(model, nla, odd, PROMPTS[1], **SWEEP),
    "patch(corrupted)": lambda nla, model, v, h, odd: patch(model, nla, PROMPTS[0], odd, **SWEEP),
    "ablate(prompt)": lambda nla, model, v, h, odd: ablate(model, nla, odd, method="zero", **SWEEP),
    "steer(prompt)": lambda nla, model, v, h, odd: steer(model, nla, odd, vector=v[0], **SWEEP),
    "bulk.run(source)": lambda nla, model, v, h, odd: bulk.run(nla, odd, "/nonexistent/o.parquet"),
    "Sampling(temperature)": lambda nla, model, v, h, odd: Sampling(temperature=odd),
    "Sampling(max_new_tokens)": lambda nla, model, v, h, odd: Sampling(max_new_tokens=odd),
    "Baseline.from_vectors": lambda nla, model, v, h, odd: Baseline.from_vectors(odd, name="mine"),
    "Checkpoint.load": lambda nla, model, v, h, odd: Checkpoint.load(odd),
    "NLA(av)": lambda nla, model, v, h, odd: type(nla)(odd),
    "NLA(ar=)": lambda nla, model, v, h, odd: type(nla)(nla.av, checkpoint=nla.checkpoint, ar=odd),
    "NLA(dtype=)": lambda nla, model, v, h, odd: type(nla)(nla.runtime.name, dtype=odd),
    "handle[key]": lambda nla, model, v, h, odd: h[odd],
}
"""The calls that are tried; each gets `odd` in one place and is right everywhere else."""
_PYTHONS_OWN = {"handle[key]": (IndexError, TypeError, NotImplementedError)}
"""What Python's own protocols want raised."""


@pytest.mark.parametrize("call", CALLS)
def test_a_result_or_one_of_our_errors(call, model, nla, residuals, figure):
    vectors = residuals[-2:]
    handle = nla.explain(vectors)
    text, size = handle.text, nla.batch_size
    raw, worked = {}, 0
    for name, odd in ODD.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                CALLS[call](nla, model, vectors, handle, odd)
            worked += 1
        except NLAError as error:
            if not 0 < len(str(error)) < 2_000:
                raw[name] = f"a message of {len(str(error))} characters"
        except _PYTHONS_OWN.get(call, ()):
            pass
        except Exception as error:
            last = inspect.trace()[-1]
            raw[name] = (
                f"{type(error).__name__}: {str(error)[:90]} ({last.filename[-40:]}:{last.lineno})"
            )
        finally:
            nla.batch_size = size
            for pending in nla.pending:
                del pending
    assert not raw, "\n".join(f"{name}: {said}" for name, said in raw.items())
    assert nla.explain(vectors).text == text  # The NLA still works.
    print(f"{call}: {worked} gave a result, {len(ODD) - worked} were refused")
    figure(
        f"odd arguments, {len(ODD)} in each of {len(CALLS)} places", len(ODD),
        "a result, or an error of the package",
    )  # fmt: skip
