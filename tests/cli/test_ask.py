"""``nnsight-nla ask``: answers of an oracle, next to its controls."""

import json

import pytest
from typer.testing import CliRunner

from nnsight_nla import NLA, cli, tiny
from nnsight_nla.cli.app import out
from nnsight_nla.errors import NLAError

TEXT = "What a lovely day! People in Paris speak"
SUBJECT, TONE = "What is the subject?", "What is the tone?"


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    # Rich reads COLUMNS when the console is made, at import.
    monkeypatch.setattr(out, "width", 100)


@pytest.fixture(scope="module")
def oracle(pair):
    return NLA.on(pair[0], av=tiny.paths()["oracle"])


def invoke(*arguments):
    done = CliRunner().invoke(cli.app, ["ask", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def test_answers_are_those_of_the_library(model, oracle):
    found = json.loads(
        invoke(TEXT, "--question", SUBJECT, "--question", TONE, "--position", "3,-1", "--json")
    )
    with model.trace(TEXT):
        residual = oracle.layer(model).output[0].save()
    rows = found["explanations"]
    assert found["layer"] == 3
    asked = [(each["question"], each["position"]) for each in rows]
    assert asked == [(SUBJECT, 3), (SUBJECT, 8), (TONE, 3), (TONE, 8)]
    assert [each["token"] for each in rows[:2]] == [" day", " speak"]
    said = [oracle.ask(residual[place], question).text for question, place in asked]
    assert [each["text"] for each in rows] == said
    assert said[1] == "Paris"
    assert rows[1]["label"]["other"] is not None
    assert rows[1]["label"]["answers"] == 2


def test_slots_and_layer(model, oracle):
    found = json.loads(
        invoke(TEXT, "--question", SUBJECT, "--slots", "3", "--layer", "4", "--json")
    )
    with model.trace(TEXT):
        residual = oracle.layer(model, 4).output[0, -3:].save()
    assert found["layer"] == 4
    assert found["origin"]["layer"] == 4
    (row,) = found["explanations"]
    assert (row["slots"], row["position"]) == (3, 8)
    assert row["text"] == oracle.ask(residual, SUBJECT, layer=4).text


def test_choices_have_probabilities():
    command = (TEXT, "--question", "Is the tone calm?", "--choices", "Yes, No")
    (row,) = json.loads(invoke(*command, "--json"))["explanations"]
    assert row["probabilities"].keys() == {"Yes", "No"}
    assert sum(row["probabilities"].values()) == pytest.approx(1)
    shown = invoke(*command)
    assert f"Yes {row['probabilities']['Yes']:.2f}, No {row['probabilities']['No']:.2f}" in shown
    assert f"  {row['mass']:.2f}  " in shown


def test_the_table_has_the_answers_of_the_controls():
    command = (TEXT, "--question", SUBJECT, "--position", "5,8")
    label = json.loads(invoke(*command, "--json"))["explanations"][1]["label"]
    lines = invoke(*command).splitlines()
    assert lines[0].strip() == SUBJECT
    assert "without vectors" in lines[1]
    cells = [" speak'", "Paris", label["without"], label["random"], label["other"]]
    (line,) = (line for line in lines if line.startswith("8 "))
    assert line.split("  ")[0] == "8"
    assert all(cell in line for cell in cells)
    assert label["line"] in " ".join(" ".join(lines).split())


def test_a_folder_of_ones_own_is_an_adapter_on_the_target():
    folders = tiny.paths()
    own = ("--av", str(folders["oracle"]), "--target", str(folders["target"]))
    command = (TEXT, "--question", SUBJECT, "--json")
    embedded, given = (json.loads(invoke(*command, *each)) for each in ((), own))
    assert given["explanations"][0]["text"] == embedded["explanations"][0]["text"] == "Paris"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--question", " "], "question ' ' is empty"),
        (["--question", SUBJECT, "--choices", "Yes"], "--choices 'Yes': expected at least two"),
        (["--question", SUBJECT, "--choices", "Yes,"], "--choices 'Yes,': expected at least two"),
        (["--question", SUBJECT, "--choices", "Yes,Yes"], "expected different words"),
        (["--question", SUBJECT, "--layer", "2"], "trained on layer 3, 4. Choose one of these"),
        (["--question", SUBJECT, "--position", "9"], "the text has 9 tokens, 0 to 8"),
        (
            ["--question", SUBJECT, "--position", "all", "--slots", "3"],
            "--slots 3 at position 0: 1 of the text's tokens end there. Type --slots 1",
        ),
        (["--question", SUBJECT, "--target", "somewhere"], "needs the verbalizer"),
        (
            ["--question", SUBJECT, "--av", str(tiny.paths()["av"]), "--target",
             str(tiny.paths()["target"])],
            "Type nnsight-nla explain TEXT, or load an activation oracle: --av ADAPTER",
        ),
    ],
)  # fmt: skip
def test_a_users_mistake_says_what_to_type(arguments, message):
    with pytest.raises(NLAError) as caught:
        invoke(TEXT, *arguments)
    assert message in cli.in_flags(str(caught.value), "ask")


def test_explaining_with_an_oracle_says_what_to_type():
    folders = tiny.paths()
    command = ["explain", TEXT, "--av", str(folders["oracle"]), "--target", str(folders["target"])]
    caught = CliRunner().invoke(cli.app, command).exception
    said = cli.in_flags(str(caught), "explain")
    assert "Type nnsight-nla ask TEXT --question 'What is the text about?'" in said
