"""A session answers every message, whatever happens to the others."""

import json
import runpy
from itertools import pairwise

import pytest
import torch

from nnsight_nla import NLAError, tiny
from nnsight_nla.live import Session
from nnsight_nla.live import session as sessions
from nnsight_nla.live.messages import LONGEST
from tests.live.conftest import PARIS, Page, of


def run_code(code, folder):
    """Run lines of code from a file, because nnsight reads the source of a trace."""
    file = folder / "card.py"
    file.write_text(code, "utf-8")
    runpy.run_path(str(file))


def test_a_page_gets_every_run_when_it_connects(session):
    page = Page(session)
    runs = of("run", page.now())
    assert [run["run"] for run in runs[:2]] == [0, 1]
    assert [run["prompt"] for run in runs[:2]] == [0, 1]
    assert [token["t"] for token in runs[0]["reading"]["tokens"]] == [
        "People", "␣in", "␣Paris", "␣speak",
    ]  # fmt: skip
    page.client.close()
    json.dumps(runs)


def test_an_explanation_streams_and_ends_in_the_token_of_a_reading(session, page, pair):
    model, nla = pair
    expected = nla.read(model, PARIS)
    messages = page.ask("explain", run=0, positions=[3, 2])
    assert [each["before"] for each in of("queued", messages)] == [0, 1]
    assert [messages[-1]["type"], messages[0]["type"]] == ["done", "queued"]
    for position in (2, 3):
        texts = [each["text"] for each in of("text", messages) if each["position"] == position]
        assert len(texts) > 5
        assert all(later.startswith(text) for text, later in pairwise(texts))
        assert len(set(texts)) == len(texts)
        (token,) = [each["token"] for each in of("token", messages) if each["position"] == position]
        record = expected[position]
        assert token["x"] == texts[-1] == record.explanation
        assert token["grade"] == record.grade
        assert token["trust"] == record.trust
        assert abs(token["cos"] - record.reconstruction_cosine) < 1e-3
    assert session.runs[0].records[3]["read"]
    assert not session.runs[0].records[0]["read"]


def test_what_was_explained_is_there_when_a_page_comes_back(session, page):
    page.ask("explain", run=0, positions=[2])
    page.client.close()
    again = Page(session)
    (run,) = [each for each in of("run", again.now()) if each["run"] == 0]
    assert "Paris" in run["reading"]["tokens"][2]["x"]
    assert "x" not in run["reading"]["tokens"][0]
    again.client.close()


def test_a_card_has_all_that_is_known_of_its_token(session, page):
    page.ask("explain", run=0, positions=[2])
    record = session.runs[0].records[2]
    assert len(record["next"]) == 5
    assert record["next"] == sorted(record["next"], key=lambda each: -each[1])
    assert [text for text, _ in record["claims"]] == record["explanation"].splitlines()
    assert record["against"].startswith("cosine 0.9")
    assert "the other vectors of this text" in record["against"]
    assert record["denominator"].startswith("denominator 0.97")
    assert [name for name, _ in record["receipt"] if name in ("verbalizer", "injection")] == [
        "verbalizer",
        "injection",
    ]
    assert "samples" not in record


def test_samples_and_what_they_agree_on(session, page):
    messages = page.ask("explain", run=0, positions=[3], samples=3)
    record = session.runs[0].records[3]
    assert messages[-1]["type"] == "done"
    assert len(record["samples"]) == 3
    assert record["samples"][0] == record["explanation"]
    assert " of 3: " in record["agree"]


def test_the_code_of_a_card_gives_its_explanation(session, page, capsys, tmp_path):
    page.ask("explain", run=0, positions=[2])
    record = session.runs[0].records[2]
    assert record["code"].startswith("from nnsight_nla import tiny\n")
    run_code(record["code"], tmp_path)
    assert capsys.readouterr().out.strip() == record["explanation"]


def test_the_tokens_of_a_character_are_one_chip_also_when_explained(session, page):
    (run,) = of("run", page.ask("open", text="I like 🙂"))
    tokens = run["reading"]["tokens"]
    first = next(i for i, token in enumerate(tokens) if "w" in token)
    assert "🙂" in tokens[first]["w"]
    assert all(token["in"] for token in tokens[first + 1 :])
    messages = page.ask("explain", run=run["run"], positions=[first])
    assert of("token", messages)[0]["token"]["w"] == tokens[first]["w"]


def test_a_new_prompt_is_a_run_of_every_page(session, page):
    other = Page(session)
    other.now()
    messages = page.ask("open", text="The cow lives in the")
    (run,) = of("run", messages)
    assert "id" in run
    (seen,) = of("run", other.now())
    assert "id" not in seen
    assert seen["run"] == run["run"]
    other.client.close()


def test_two_pages_see_the_same_texts_and_their_own_ids(session, page):
    other = Page(session)
    other.now()
    page.ask("explain", run=1, positions=[3])
    seen = other.now()
    assert of("token", seen)
    assert {each["type"] for each in seen} == {"text", "token"}
    assert all("id" not in each for each in seen)
    other.client.close()


def test_requests_that_wait_are_explained_in_one_batch(session, page, pair, monkeypatch):
    _, nla = pair
    (run,) = session.open("The river flows through the city of")
    sizes = []
    real = nla._verbalizer.verbalize

    def verbalize(vectors, *rest, **more):
        sizes.append(len(vectors))
        return real(vectors, *rest, **more)

    monkeypatch.setattr(nla._verbalizer, "verbalize", verbalize)
    with nla.runtime.lock.held():  # The worker takes the first and waits for the verbalizer.
        first = page.send("explain", run=run.number, positions=[0])
        while session._waiting:
            pass
        others = [page.send("explain", run=run.number, positions=[at]) for at in (1, 2, 3, 2)]
    page.until(first, *others)
    assert sizes[0] == 1
    assert sizes[1] == 3


def test_a_long_range_and_a_click_take_turns(session, page, pair, monkeypatch):
    _, nla = pair
    (run,) = session.open("The river flows through the town of")
    monkeypatch.setattr(sessions, "_MOST_ROWS", 2)
    with nla.runtime.lock.held():
        page.send("explain", run=run.number, positions=[0])
        while session._waiting:
            pass
        everything = page.send("explain", run=run.number, positions=[1, 2, 3, 4, 5])
        click = page.send("explain", run=run.number, positions=[6])
    messages = page.until(everything, click)
    tokens = [each["position"] for each in of("token", messages)]
    assert tokens.index(6) <= 2


def test_cancelling_leaves_the_others_their_texts(session, page, pair):
    model, nla = pair
    (run,) = session.open("The museum of Rome shows")
    expected = nla.read(model, "The museum of Rome shows").explanations
    waiting = []
    real = page.client.send

    def send(message):
        real(message)
        if message["type"] == "text" and message["position"] == 2 and not waiting:
            waiting.append(page.client.handle({"type": "cancel", "id": cancelled}))

    page.client.send = send
    with nla.runtime.lock.held():
        page.send("explain", run=run.number, positions=[0])
        while session._waiting:
            pass
        cancelled = page.send("explain", run=run.number, positions=[2])
        kept = page.send("explain", run=run.number, positions=[3])
    messages = page.until(cancelled, kept)
    assert [each["id"] for each in of("cancelled", messages)] == [cancelled]
    assert len([each for each in of("text", messages) if each["position"] == 2]) == 1
    assert [each["position"] for each in of("token", messages) if "id" in each][-1] == 3
    assert run.records[3]["explanation"] == expected[3]
    assert not run.records[2]["read"]
    assert page.ask("explain", run=run.number, positions=[2])[-1]["type"] == "done"
    assert run.records[2]["explanation"] == expected[2]


def test_what_waits_can_be_cancelled_before_it_begins(session, page, pair):
    _, nla = pair
    (run,) = session.open("The museum of Paris shows")
    page.now()
    with nla.runtime.lock.held():
        first = page.send("explain", run=run.number, positions=[0])
        while session._waiting:
            pass
        second = page.send("open", text="never")
        page.client.handle({"type": "cancel", "id": second})
        page.client.handle({"type": "cancel", "id": 999})
    messages = page.until(first, second)
    assert [each["id"] for each in of("cancelled", messages)] == [second]
    assert of("run", messages) == []


def test_what_a_page_waits_for_is_dropped_when_it_goes(session, page, pair):
    _, nla = pair
    (run,) = session.open("The castle of Paris")
    gone = Page(session)
    with nla.runtime.lock.held():
        gone.send("explain", run=run.number, positions=[0])
        while session._waiting:
            pass
        gone.send("explain", run=run.number, positions=[1, 2])
        gone.client.close()
        click = page.send("explain", run=run.number, positions=[3])
    page.until(click)
    assert [record["read"] for record in run.records[:4]] == [True, False, False, True]
    assert session._open == {}


def test_compare(session, page):
    messages = page.ask("compare", a=[0, 2], b=[1, 2])
    (result,) = of("result", messages)
    assert "Paris" in result["texts"][0]
    assert "Rome" in result["texts"][1]
    one, other = session.runs[0].residuals[2], session.runs[1].residuals[2]
    assert abs(result["cosine"] - torch.cosine_similarity(one, other, dim=0)) < 1e-5


def test_a_patch_is_a_run_that_can_be_clicked(session, page, pair, capsys, tmp_path):
    from nnsight_nla.experiments import kl, patch

    model, nla = pair
    messages = page.ask("patch", source=[0, 2], target=[1, 2], layer=1)
    (run,), (result,) = of("run", messages), of("result", messages)
    assert result["cell"] == [run["run"], 2]
    assert run["reading"]["label"] == "text 2, position 2 from text 1 position 2 at block 1"
    assert run["reading"]["cell"] == 2
    assert "cell" not in session.runs[1].side()
    clean, corrupt = session.runs[0].given, session.runs[1].given
    sweep = patch(
        model, nla, clean, corrupt, layers=[1], positions=[2], metric=kl("corrupt"), explain_at=-1
    )
    (row,) = sweep.rows()
    assert abs(result["kl"] - row["metric"]) < 1e-4
    page.ask("explain", run=run["run"], positions=[3])
    patched = session.runs[run["run"]]
    assert patched.records[3]["explanation"] == row["after"]
    assert patched.records[2]["read"]
    before = {token: p for token, p, _ in result["next"]}
    assert before["␣Italian"] > 0.9
    run_code(patched.records[3]["code"], tmp_path)
    assert capsys.readouterr().out.strip() == row["after"]


def test_a_patch_of_a_patched_run_has_both_writes(session, page, capsys, tmp_path):
    page.ask("explain", run=0, positions=[3])
    (first,) = of("result", page.ask("patch", source=[0, 2], target=[1, 2], layer=0))
    messages = page.ask("patch", source=[0, 3], target=[first["run"], 3], layer=3)
    (second,) = of("result", messages)
    run = session.runs[second["run"]]
    assert run.label.endswith(" at block 0, position 3 from text 1 position 3")
    assert [(each.site.layer, each.position) for each in run.edits] == [(0, 2), (3, 3)]
    assert torch.allclose(run.residuals[3], session.runs[0].residuals[3], atol=1e-5)
    assert torch.allclose(run.residuals[2], session.runs[first["run"]].residuals[2], atol=1e-5)
    run_code(run.records[3]["code"], tmp_path)
    assert capsys.readouterr().out.strip() == session.runs[0].records[3]["explanation"]


def test_steering_by_an_edited_explanation(session, page, pair):
    model, nla = pair
    page.ask("explain", run=1, positions=[3])
    text = session.runs[1].records[3]["explanation"].replace("Rome", "Paris")
    text = text.replace("Italian", "French").replace("Italy", "France")
    messages = page.ask("steer", run=1, position=3, text=text, dose=2)
    (result,) = of("result", messages)
    assert [each["dose"] for each in result["continuations"]] == [0, 2]
    assert "Italian" in result["continuations"][0]["text"]
    assert "French" in result["continuations"][1]["text"]
    after = {token: p for token, _, p in result["next"]}
    assert after["␣French"] > 0.5
    assert "France" in result["explanation"]
    assert result["kl"] > 1
    with model.generate("People in Rome speak", max_new_tokens=5) as tracer:
        thought = session.runs[1].handle([3])[0]
        nla.layer(model).output[0, 3] += 2 * nla.direction(to=text, away_from=thought)
        written = tracer.result.save()
    said = model.tokenizer.decode(written[0])
    assert result["continuations"][1]["text"].startswith(said.split("speak")[1])


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "expected a JSON object"),
        ("[" * 100_000, "not JSON"),
        ("x" * (LONGEST + 1), "at most 200,000"),
        ({"type": "explain"}, "id=None"),
        ({"type": "explode", "id": 1}, "expected one of explain, cancel, open"),
        ({"type": "explain", "id": 1, "run": 99, "positions": [0]}, "there is no such run"),
        ({"type": "explain", "id": 1, "run": 0, "positions": [99]}, "positions 0 to 3"),
        ({"type": "explain", "id": 1, "run": 0, "positions": ["0"]}, "whole number"),
        ({"type": "explain", "id": 1, "run": 0, "positions": []}, "a list of positions"),
        ({"type": "explain", "id": 1, "run": 0, "positions": [0], "samples": 99}, "from 1 to 16"),
        ({"type": "open", "id": 1, "text": " "}, "not empty"),
        ({"type": "open", "id": 1, "text": "\ud800"}, "characters of Unicode"),
        ({"type": "open", "id": 1, "text": "word " * 3000}, "was built for"),
        ({"type": "compare", "id": 1, "a": [0, 1]}, "b=None: expected [run, position]"),
        ({"type": "patch", "id": 1, "source": [0, 1], "target": [0, 1], "layer": 99}, "layers=99"),
        (
            {"type": "steer", "id": 1, "run": 0, "position": 1, "text": "a", "dose": 1e400},
            "expected a number",
        ),
    ],
)
def test_a_message_that_cannot_be_done_is_answered(page, message, said):
    page.client.handle(message)
    answer = page.got.get(timeout=30)
    while answer["type"] == "queued":
        answer = page.got.get(timeout=30)
    assert answer["type"] == "error"
    assert said in answer["message"]
    assert answer.get("id") == (message.get("id") if isinstance(message, dict) else None)


def test_too_many_requests_are_refused_and_disturb_nothing(session, page, pair, small):
    _, nla = pair
    (run,) = session.open("The market of Paris sells")
    with nla.runtime.lock.held():
        ids = [page.send("explain", run=run.number, positions=[at % 5]) for at in range(1000)]
    messages = page.until(*ids)
    errors = of("error", messages)
    assert len(errors) == 1000 - 5
    assert all(each["message"].startswith("Too many requests: 5 are waiting") for each in errors)
    assert [each["id"] for each in of("done", messages)] == ids[:5]
    assert all(record["read"] for record in run.records[:5])


def test_the_failure_of_one_request_is_not_that_of_another(session, page, pair, monkeypatch):
    _, nla = pair
    (run,) = session.open("The market of Rome sells")
    real = nla._verbalizer.verbalize
    bad = run.residuals[1]

    def verbalize(vectors, *rest, **more):
        if any(torch.equal(vector, bad) for vector in vectors):
            raise RuntimeError("the plug was pulled")
        return real(vectors, *rest, **more)

    monkeypatch.setattr(nla._verbalizer, "verbalize", verbalize)
    with nla.runtime.lock.held():
        page.send("explain", run=run.number, positions=[0])
        while session._waiting:
            pass
        fails = page.send("explain", run=run.number, positions=[1])
        works = page.send("explain", run=run.number, positions=[2])
    messages = page.until(fails, works)
    (error,) = of("error", messages)
    assert error["id"] == fails
    assert "the plug was pulled" in error["message"]
    assert run.records[2]["read"]


def test_a_client_that_cannot_be_reached_is_dropped(session, page):
    def broken(message):
        if message["type"] == "text":
            raise OSError("gone")

    session.connect(broken)
    (run,) = session.open("The bridge of Paris")
    assert page.ask("explain", run=run.number, positions=[1])[-1]["type"] == "done"
    assert all(each.send is not broken for each in session._clients)


def test_a_session_has_so_many_runs(session, page, monkeypatch):
    monkeypatch.setattr(sessions, "MOST_RUNS", 1)
    (error,) = of("error", page.ask("open", text="One more"))
    assert "holds 1 runs" in error["message"]


def test_a_run_for_each_layer(pair):
    model, nla = pair
    beside = nla._copied()
    made = Session(model, [nla, beside])
    runs = made.open(PARIS)
    made.close()
    assert [(run.prompt, run.label, run.name) for run in runs] == [
        (0, "text 1", "nlas[0]"), (0, "text 1", "nlas[1]"),
    ]  # fmt: skip
    with pytest.raises(NLAError, match="There is no NLA"):
        Session(model, [])


def test_without_a_reconstructor_a_card_has_no_claims(pair):
    from nnsight_nla import NLA

    model, _ = pair
    made = Session(model, NLA(tiny.paths()["av"], dtype=torch.float32))
    made.open(PARIS)
    page = Page(made)
    assert page.ask("explain", run=0, positions=[2])[-1]["type"] == "done"
    assert "Paris" in made.runs[0].records[2]["explanation"]
    assert made.runs[0].records[2]["claims"] == []
    messages = page.ask("steer", run=0, position=2, text="About Rome.", dose=1)
    assert "no reconstructor" in messages[-1]["message"]
    made.close()
