"""A chat template that prints the date: known, pinned, resumed, and told in words.

Llama 3.1's does, with `strftime_now`. Everything that compares today with an earlier day is tried:
an NLA, its pickle, a bulk run, a sweep, a training, and what is trained.
"""

import datetime
import pickle
import re
import warnings
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from nnsight_nla import NLA, Checkpoint, CheckpointError, NLAError, NLAWarning, Sampling, bulk, tiny
from nnsight_nla.bulk.finished_file import read_note
from nnsight_nla.checkpoint import dates
from nnsight_nla.experiments import ExperimentError, ablate, logit_difference
from nnsight_nla.training import Settings, Watching, describe, train
from nnsight_nla.training.published import Published
from tests.helpers.checkpoints import copied, edit_sidecar
from tests.helpers.published import base, publish, records, tokenizer

DATED = "{{ '<|im_start|>system\\nToday: ' + strftime_now('%d %b %Y') + '<|im_end|>\\n' }}"
# As in Llama 3.1: the caller's date_string, else the clock, else a fixed day.
LLAMA = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}"
    "{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
    "{{ 'Today Date: ' + date_string + '\\n' }}"
)
SHORT = Sampling(max_new_tokens=6)
FIRST, SECOND = "2026-11-26", "2026-11-27"


@pytest.fixture
def day(monkeypatch):
    """Set the day that it is."""

    def set_day(date: str, time: str = "10:20:30") -> None:
        now = datetime.datetime.fromisoformat(f"{date}T{time}")
        monkeypatch.setattr(dates, "_now", lambda: now)

    set_day(FIRST)
    return set_day


def with_template(folder: Path, start: str) -> Path:
    file = folder / "chat_template.jinja"
    file.write_text(start + file.read_text("utf-8"), "utf-8")
    return folder


@pytest.fixture
def av(tmp_path) -> Path:
    """The verbalizer, with a template that prints the date."""
    return with_template(copied(tiny.paths()["av"], tmp_path / "av"), DATED)


def opened(av: Path, **options) -> NLA:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NLAWarning)
        return NLA(av, dtype=torch.float32, **options)


@pytest.mark.parametrize("start", [DATED, LLAMA], ids=["plain", "llama"])
def test_it_warns_and_says_what_to_type(tmp_path, day, start):
    av = with_template(copied(tiny.paths()["av"], tmp_path / "av"), start)
    with pytest.warns(NLAWarning, match="now 2026-11-26") as caught:
        nla = NLA(av)
    assert "26 Nov 2026" in nla.prompt.text
    assert (nla.prompt.date, nla.checkpoint.date) == (FIRST, FIRST)
    assert nla.info()["prompt_date"] == FIRST
    assert nla.info()["source"]["date"] == "today"
    (advice,) = re.findall(r"NLA\(\.\.\., (date='[^']*')\)", str(caught[0].message))
    day(SECOND)
    again = eval(f"NLA(av, {advice})", {"NLA": NLA, "av": av})  # Warnings are errors here.
    assert again.prompt == nla.prompt


def test_a_template_without_a_date_takes_one_and_does_not_change():
    plain = NLA(tiny.paths()["av"], date=FIRST)
    assert plain.prompt.date is None
    assert plain.prompt == NLA(tiny.paths()["av"]).prompt
    assert plain.on_date(SECOND).prompt == plain.prompt


def test_the_time_of_day_is_pinned_where_it_is_printed(tmp_path, day):
    av = copied(tiny.paths()["av"], tmp_path / "av")
    nla = opened(with_template(av, DATED.replace("%d %b %Y", "%d %b, %H:%M:%S")))
    assert "26 Nov, 10:20:30" in nla.prompt.text
    assert nla.prompt.date == "2026-11-26T10:20:30"
    assert NLA(av, date=nla.prompt.date).prompt == nla.prompt


def test_what_is_no_date_is_refused(av):
    with pytest.raises(CheckpointError, match="date='tomorrow': expected a date such as"):
        NLA(av, date="tomorrow")
    edit_sidecar(av, lambda tree: tree["training"].update(prompt_date="tomorrow"))
    with pytest.raises(CheckpointError, match=r"date \(training.prompt_date in .* is 'tomorrow'"):
        NLA(av)


def test_a_sidecar_pins_it(av, day):
    # Unquoted in the file, as a person would write it: YAML reads a date.
    edit_sidecar(av, lambda tree: tree["training"].update(prompt_date=datetime.date(2026, 11, 1)))
    nla = NLA(av)
    assert nla.checkpoint.date == "2026-11-01"
    assert "01 Nov 2026" in nla.prompt.text
    assert NLA(av, date=SECOND).checkpoint.date == SECOND


def test_the_date_is_in_the_receipt_and_travels_with_a_pickle(av, residuals, day):
    nla = opened(av)
    thought = nla.explain(residuals[-1], sampling=SHORT)
    assert thought.receipt.prompt_date == FIRST
    data, text = pickle.dumps((nla, thought)), thought.text
    del nla, thought
    day(SECOND)
    again, read = pickle.loads(data)
    assert again.prompt.date == FIRST
    assert read.text == text


def test_another_date_shares_the_weights_and_changes_the_prompt_only(av, residuals, day):
    nla = opened(av, ar=tiny.paths()["ar"], batch_size=3)
    waiting = nla.explain(residuals[-1], sampling=SHORT)
    other = nla.on_date(SECOND)
    assert (other.av, other.ar, other.runtime) == (nla.av, nla.ar, nla.runtime)
    assert (other.prompt.date, nla.prompt.date) == (SECOND, FIRST)
    assert other.batch_size == 3
    assert other.pending == ()
    assert waiting.receipt.prompt_date == FIRST
    assert waiting.text == opened(av).explain(residuals[-1], sampling=SHORT).text
    thought = other.explain(residuals[-1], sampling=SHORT)
    assert thought.receipt.prompt_date == SECOND
    assert thought.text == NLA(av, date=SECOND).explain(residuals[-1], sampling=SHORT).text
    assert other.explain(residuals[-1]).trust.cosine is not None
    assert pickle.loads(pickle.dumps(other)).prompt == other.prompt


def vectors(folder: Path, residuals) -> Path:
    import pyarrow as pa

    rows = [{"activation_vector": each.tolist()} for each in residuals]
    pq.write_table(pa.Table.from_pylist(rows), folder / "in.parquet")
    return folder / "in.parquet"


def interrupted(nla: NLA, source: Path, output: Path) -> None:
    """Make one chunk, then fail."""
    calls = iter(range(99))

    class Stops(type(nla)):
        def resolve(self, handles=None):
            if next(calls):
                raise KeyboardInterrupt
            super().resolve(handles)

    nla.__class__ = Stops
    with pytest.raises(KeyboardInterrupt):
        bulk.run(nla, source, output, chunk=2, sampling=SHORT, score=False)


@pytest.mark.parametrize("chosen", [SECOND, None])
def test_another_layer_has_the_same_date(av, day, chosen):
    checkpoint = replace(Checkpoint.load(av), layers=(2, 3), date=None)
    given = {"checkpoint": checkpoint, "date": chosen}
    if chosen is None:
        with pytest.warns(NLAWarning, match="date"):
            nla = NLA(av, **given)
    else:
        nla = NLA(av, **given)
    day("2027-01-01")
    assert nla.at_layer(2).prompt.date == nla.prompt.date == (chosen or FIRST)


def test_a_run_that_is_resumed_keeps_its_date(av, residuals, tmp_path, day):
    source, output = vectors(tmp_path, residuals), tmp_path / "out.parquet"
    interrupted(opened(av), source, output)
    day(SECOND)
    options = {"chunk": 2, "sampling": SHORT, "score": False}
    with pytest.warns(NLAWarning, match="made with the date 2026-11-26"):
        report = bulk.run(opened(av), source, output, **options)
    assert (report.resumed, report.errors) == (1, 0)
    day(FIRST)
    bulk.run(opened(av), source, tmp_path / "whole.parquet", **options)
    assert pq.read_table(output).equals(pq.read_table(tmp_path / "whole.parquet"))
    day(SECOND)
    with pytest.warns(NLAWarning, match="made with the date 2026-11-26"):
        again = bulk.run(opened(av), source, output, **options)
    assert again.chunks == 0
    recorded = read_note(output)["manifest"]["verbalizer"]["prompt"]
    assert recorded["date"] == FIRST
    assert "Today: 26 Nov 2026" in recorded["text"]


def test_a_date_that_was_asked_for_is_not_changed_and_the_difference_is_told_in_words(
    av, residuals, tmp_path, day
):
    source, output = vectors(tmp_path, residuals), tmp_path / "out.parquet"
    interrupted(opened(av), source, output)
    with pytest.raises(NLAError) as raised:
        bulk.run(NLA(av, date=SECOND), source, output, chunk=2, sampling=SHORT, score=False)
    said = str(raised.value)
    assert "date: '2026-11-26' before, '2026-11-27' now" in said
    (line,) = (each for each in said.splitlines() if "prompt.text" in each)
    assert "Today: 26 Nov 2026<|im_end|>" in line
    assert "Today: 27 Nov 2026<|im_end|>" in line
    assert len(line) < 250


def test_a_template_that_was_edited_is_told_in_words(residuals, tmp_path):
    source, output = vectors(tmp_path, residuals), tmp_path / "out.parquet"
    av = copied(tiny.paths()["av"], tmp_path / "av")
    interrupted(NLA(av, dtype=torch.float32), source, output)
    with_template(av, "{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}")
    with pytest.raises(NLAError) as raised:
        bulk.run(NLA(av, dtype=torch.float32), source, output, chunk=2, sampling=SHORT, score=False)
    (line,) = (each for each in str(raised.value).splitlines() if "prompt.text" in each)
    assert "Be brief." in line.split(" before, ")[1]
    assert "Be brief." not in line.split(" before, ")[0]


@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "stored"])
def test_a_sweep_says_which_date_it_has_and_continues_with_it(av, model, tmp_path, day, stored):
    def run(nla, **options):
        return ablate(
            model, nla, "People in Paris speak", method="zero", layers=[1, 4], positions=[-1],
            metric=logit_difference(" French", " Italian"), **options,
        )  # fmt: skip

    first = sweep = run(opened(av))
    if stored:
        sweep = tmp_path / "sweep.parquet"
        first.to_parquet(sweep)
    day(SECOND)
    nla = opened(av)
    with pytest.raises(
        ExperimentError, match=r"date 2026-11-26.*this NLA has 2026-11-27"
    ) as raised:
        run(nla, resume=sweep)
    (advice,) = re.findall(r"pass (nla\.on_date\('[^']*'\)) as the NLA", str(raised.value))
    again = run(eval(advice, {"nla": nla}), resume=sweep)
    assert again.rows() == first.rows()


def trained(folder: Path, out: Path, steps: int, **watching):
    settings = Settings(steps=steps, batch_size=4, learning_rate=1e-3, warmup=1)
    return train(
        "av", folder / "rows.parquet", base=folder / "base", out=out, settings=settings,
        watching=Watching(every=2, rows=0, **watching), held_out=0.25,
    )  # fmt: skip


def test_a_training_keeps_its_date_and_what_it_makes_has_it(tmp_path, day):
    base(tmp_path / "base")
    with_template(tmp_path / "base", DATED)
    publish(tmp_path / "rows.parquet", records())
    first = trained(tmp_path, tmp_path / "out", 2, keep=True)
    assert first.checkpoint.date == FIRST
    day(SECOND)
    assert trained(tmp_path, tmp_path / "out", 2, keep=True).checkpoint.date == FIRST
    more = trained(tmp_path, tmp_path / "out", 4)
    assert more.checkpoint.date == FIRST
    sidecar = yaml.safe_load((tmp_path / "out" / "nla_meta.yaml").read_text("utf-8"))
    assert sidecar["training"]["prompt_date"] == FIRST
    assert "26 Nov 2026" in NLA(tmp_path / "out").prompt.text
    assert trained(tmp_path, tmp_path / "out", 4).log == more.log
    assert trained(tmp_path, tmp_path / "new", 2).checkpoint.date == SECOND


def test_rows_that_name_the_date_are_trained_on_with_it(tmp_path, day):
    base(tmp_path / "base")
    with_template(tmp_path / "base", DATED)
    publish(tmp_path / "rows.parquet", records(), sidecar={"training.prompt_date": "2026-11-01"})
    assert Published(tmp_path / "rows.parquet").meta["date"] == "2026-11-01"
    assert trained(tmp_path, tmp_path / "out", 2).checkpoint.date == "2026-11-01"


def test_a_description_names_its_day(day):
    live = tokenizer()
    live.chat_template = DATED + live.chat_template
    options = {"layer": 1, "d_model": 32}
    assert describe(live, **options).date == FIRST
    assert describe(live, **options, date=SECOND).date == SECOND
    assert describe(tokenizer(), **options, date=SECOND).date is None
    assert Checkpoint(**{**vars(describe(live, **options)), "date": SECOND}).date == SECOND
