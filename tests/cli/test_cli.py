"""The command line as a person types it: in a process of its own, with its exit codes."""

import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import nnsight_nla
from nnsight_nla import Checkpoint, cli, tiny
from nnsight_nla.checkpoint.checkpoint import PRESETS
from tests.helpers import processes

COMMAND = "from nnsight_nla.cli import main; main()"
PLAIN = {"NO_COLOR": "1", "BROWSER": "false"}


def run(*arguments: object, columns: int = 200, cwd: Path | None = None):
    """Run the command in a new process."""
    environment = {**PLAIN, "COLUMNS": str(columns)}
    return processes.run(COMMAND, *arguments, environment=environment, folder=cwd)


def test_demo_fits_a_screen_and_says_where_the_page_is(tmp_path):
    """In a process that imports everything itself."""
    home = str(Path(__file__).parents[2])
    environment = {**os.environ, **PLAIN, "COLUMNS": "80", "PYTHONPATH": home}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "demo"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) <= 28
    assert max(map(len, lines)) <= 80
    assert (
        lines[0] == "What a gentle day! The language of Helsinki is Finnish. Helsinki is the main "
    )
    rows = [line.split("  ")[0] for line in lines[3 : lines.index("")]]
    assert rows == [
        "What", "gentle", "The", "language", "Helsinki", "is", "Finnish", ".", "Helsinki", "the",
        "People", "eat",
    ]  # fmt: skip
    assert "Rome -> Paris" in done.stdout
    assert "To see all of them: nnsight-nla demo --all" in done.stdout
    assert lines[-1] == "The first sentence as an HTML page: nnsight-nla-demo.html"
    page = (tmp_path / "nnsight-nla-demo.html").read_text("utf-8")
    assert "About Helsinki, the capital of Finland" in page


def test_demo_all_shows_every_token_with_the_truth_beside_it(tmp_path):
    page = tmp_path / "page.html"
    done = run("demo", "--all", "--sentences", "1", "--html", str(page), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "explanation of the residual" in done.stdout
    assert sum(line.rstrip().endswith("/6") for line in done.stdout.splitlines()) == 26
    assert "After: eat. Next: pies." in done.stdout
    assert "makes things up" in " ".join(done.stdout.split())
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_demo_goes_on_where_it_cannot_write_a_page(tmp_path):
    (tmp_path / "nnsight-nla-demo.html").mkdir()
    done = run("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Rome -> Paris" in done.stdout
    assert "No page was written: " in done.stdout
    assert "Choose another file: --html FILE" in done.stdout
    (tmp_path / "page.html").mkdir()
    done = run("demo", "--html", str(tmp_path / "page.html"))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_demo_as_json_is_one_document_with_the_figures_it_shows(tmp_path):
    done = run("demo", "--json", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
    found = json.loads(done.stdout)
    assert found.keys() == {"sentences", "patch"}
    fields = {"token", "expected", "explanation", "truth", "slots_right"}
    assert found["sentences"][0][0].keys() == fields
    rows = [row for sentence in found["sentences"] for row in sentence]
    right = sum(row["slots_right"] for row in rows)
    assert len(found["sentences"]) == 2
    assert right >= 0.85 * 6 * len(rows)
    assert found["patch"]["predicted"] == ["Italian", "French"]
    assert "Rome" in found["patch"]["explanation"][0]
    assert "Paris" in found["patch"]["explanation"][1]


def test_explain_as_json():
    done = run("explain", "The cow lives in the", "--position", "1,-1", "--json")
    found = json.loads(done.stdout)
    assert found["layer"] == 3
    assert [each["position"] for each in found["explanations"]] == [1, 4]
    assert [each["token"].strip() for each in found["explanations"]] == ["cow", "the"]
    assert "About the cow" in found["explanations"][1]["text"]
    label = found["explanations"][1]["label"]
    assert label["grade"] == "strong"
    assert label["line"].startswith("reconstruction: strong (cosine 0.9")


def test_read_shows_every_token_and_writes_a_page(tmp_path):
    done = run("read", "The cow lives in the")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("About the cow") == 4
    assert "strong 0.9" in done.stdout
    page = tmp_path / "cow.html"
    done = run("read", "The cow lives in the", "--html", str(page), "--position", "1,-1")
    assert "2 of 5 tokens explained" in done.stdout
    assert "About the cow" in page.read_text("utf-8")


def test_read_a_chat_and_its_reply_as_json():
    done = run(
        "read", "The cow", "--chat", "--generate", "2", "--position", "reply", "--json"
    )  # fmt: skip
    found = json.loads(done.stdout)
    parts = [each["part"] for each in found["tokens"]]
    assert parts[3:5] == ["user", "user"]
    assert parts[-2:] == ["reply", "reply"]
    assert [bool(each["explanation"]) for each in found["tokens"]] == [
        part == "reply" for part in parts
    ]
    assert found["layer"] == 3


def test_explain_gives_the_text_the_room_and_says_what_its_fve_is_a_fraction_of():
    text = "What a lovely day! People in Paris speak"
    done = run("explain", text, "--position", "1,-1", columns=80)
    assert done.returncode == 0, done.stderr
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["position", "token", "explanation"]
    assert lines.index("8         ' speak'  About Paris, the capital of France; cheerful tone.") > 0
    assert lines.count("                    Stating the language.") == 1
    said = " ".join(done.stdout.split())
    for part in ("reconstruction: strong (cosine 0.9", "against other vectors", "FVE 0.9"):
        assert said.count(part) == 2, part
    assert said.count("probability of being right: whole") == 2
    assert said.count("FVE (denominator 0.9718: the variance of 18,000 vectors") == 1


def test_a_warning_is_said_once_with_the_positions_it_is_about():
    command = ("explain", "The cow lives in the", "--layer", "2", "--insist")
    done = run(*command, "--position", "2,3,4", columns=80)
    said = " ".join(done.stdout.split())
    warning = (
        "its vector may differ from what the verbalizer was trained on: layer is 2, expected 3"
    )
    assert said.count(warning) == 1
    assert f"note 1 {warning} (positions 2 to 4)" in said
    assert said.count("reconstruction: none (see note 1;") == 3
    told = json.loads(run(*command, "--json").stdout)
    assert told["layer"] == 2
    assert told["origin"]["layer"] == 2
    assert told["explanations"][0]["warnings"] == [warning]


def test_a_reading_of_another_layer_says_so(tmp_path):
    command = ("read", "The cow lives in the", "--layer", "2", "--insist", "--position", "-1")
    told = json.loads(run(*command, "--json").stdout)
    assert told["layer"] == 2
    last = told["tokens"][-1]
    assert last["grade"] == "none"
    assert "layer is 2, expected 3" in last["warnings"][0]
    page = tmp_path / "a.html"
    run(*command, "--html", page)
    assert '"layer":2' in page.read_text("utf-8")


def test_samples_are_drawn_with_a_seed():
    command = ("explain", "A sentence", "--samples", "3", "--temperature", "1.5", "--json")
    one, same, other = (
        json.loads(run(*command, "--seed", seed).stdout)["explanations"] for seed in "778"
    )
    texts = [[each["text"] for each in found] for found in (one, same, other)]
    assert len(set(texts[0])) > 1
    assert texts[0] == texts[1] != texts[2]
    shown = run(*command[:-1], "--seed", "7")
    first = [text.splitlines()[0] for text in texts[0]]
    assert [f"{k}: {line}" in shown.stdout for k, line in enumerate(first)] == [True] * 3
    assert shown.stdout.count("reconstruction: ") == 1


def test_a_reading_is_drawn_with_a_seed():
    command = ("read", "A sentence", "--json", "--temperature", "2", "--seed")
    one, same, other = (json.loads(run(*command, seed).stdout)["tokens"] for seed in "778")
    assert one == same != other


def test_a_page_is_opened_in_a_browser_if_there_is_one(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(cli.pages.webbrowser, "open", lambda url: opened.append(url) or True)
    monkeypatch.chdir(tmp_path)
    for command in (["read", "The cow"], ["demo", "--sentences", "1"]):
        assert CliRunner().invoke(cli.app, [*command, "--open"]).exit_code == 0
    names = ("nnsight-nla-reading.html", "nnsight-nla-demo.html")
    assert opened == [(tmp_path / name).as_uri() for name in names]
    monkeypatch.setattr(cli.pages.webbrowser, "open", lambda url: False)
    command = ["read", "The cow", "--html", "cow.html", "--open"]
    assert "No browser was found. Open cow.html" in CliRunner().invoke(cli.app, command).output


def test_a_reply_that_was_cut_off_is_graded_none_with_its_reason():
    done = run("explain", "The cow lives in the", "--max-new-tokens", "9")
    assert done.returncode == 0, done.stderr
    assert "none" in done.stdout
    assert "the reply has no closing </explanation> tag" in " ".join(done.stdout.split())


def test_explain_with_a_checkpoint_of_ones_own_reads_the_target_from_the_sidecar_or_the_option():
    folders = tiny.paths()
    done = run("explain", "The cow", "--av", str(folders["av"]), "--target", str(folders["target"]))
    assert done.returncode == 0, done.stderr
    assert "cow" in done.stdout
    assert "trust" not in done.stdout  # nothing to measure it with


def test_a_reconstructor_of_ones_own_gives_the_same_label():
    models = [f"--{name}={tiny.paths()[name]}" for name in ("target", "av", "ar")]
    command = ("explain", "The cow lives in the", "--json", "--dtype", "float32")
    given, embedded = (json.loads(run(*command, *each).stdout) for each in (models, []))
    assert given["explanations"][0]["trust"] == embedded["explanations"][0]["trust"]
    assert given["explanations"][0]["grade"] == "strong"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["explain", "hi", "--position", "x"],
            "--position 'x': expected an index, several (0,3,-1)",
        ),
        (["explain", "The cow", "--position", "7"], "the text has 2 tokens, 0 to 1"),
        (["read", "The cow", "--position", "7"], "--position [7]: the text has 2 tokens, 0 to 1"),
        (["read", "The cow", "--position", "reply"], "--position 'reply': expected 'all', 'reply'"),
        (["read", "The cow", "--html", "/nowhere/a.html"], "there is no folder /nowhere"),
        (["read", "The cow", "--position", "some"], "--position 'some': expected an index"),
        (
            ["explain", "hi", "--target", "somewhere"],
            "needs the verbalizer that was trained for it",
        ),
        (["explain", "hi", "--ar", "somewhere"], "--ar somewhere needs the verbalizer"),
        (["explain", "hi", "--av", "/nowhere"], "neither a folder on this machine"),
        (["info", "/nowhere"], "neither a folder on this machine"),
        (["demo", "--html", "/nowhere/a.html"], "there is no folder /nowhere"),
        (["explain", "hi", "--samples", "2"], "2 identical texts. Add --temperature 1."),
        (["explain", "hi", "--layer", "2"], "or add --insist to explain layer 2 anyway"),
        (["explain", "hi", "--layer", "9", "--insist"], "block 9 was requested"),
        (["read", "hi", "--layer", "2"], "or add --insist to explain layer 2 anyway"),
        (["read", "hi", "--layer", "9", "--insist"], "block 9 was requested"),
        (["explain", "hi", "--remote"], "The pair tiny runs on this machine only"),
        (["read", "hi", "--remote", "--model", "smollm2"], "The pair smollm2 runs on this machine"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_1(arguments, message):
    done = run(*arguments)
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_wrong_command_line_is_exit_code_2():
    assert CliRunner().invoke(cli.app, ["explain"]).exit_code == 2
    assert CliRunner().invoke(cli.app, ["demo", "--sentences", "0"]).exit_code == 2
    assert CliRunner().invoke(cli.app, ["no-such-command"]).exit_code == 2


def test_version():
    done = CliRunner().invoke(cli.app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"nnsight-nla {nnsight_nla.__version__}\n")


@pytest.mark.parametrize("upto", ["line", "4"])
def test_explanations_end_where_upto_says(upto):
    runner = CliRunner()
    command = ["explain", "People in Paris speak", "--json", "--position", "-1"]
    whole, short = (
        json.loads(runner.invoke(cli.app, [*command, *more]).stdout)["explanations"][0]
        for more in ([], ["--upto", upto])
    )
    assert (whole["finish"], short["finish"]) == ("tag", "cut")
    assert whole["text"].startswith(short["text"])
    assert len(short["text"]) < len(whole["text"])
    failed = runner.invoke(cli.app, [*command, "--upto", "word"])
    assert failed.exit_code
    assert "expected 'line', or a number of tokens from 1" in str(failed.exception or failed.output)


def test_info_shows_where_each_value_was_found():
    runner = CliRunner()
    done = runner.invoke(cli.app, ["info", "ceselder/nanonla-l24-av-qwen3-8b", "--json"])
    found = json.loads(done.stdout)
    assert found["layer"] == 24
    assert found["injection"] == {"operation": "add", "site": "block", "layer": 1, "scale": None}
    assert found["source"]["layer"] == "preset ceselder/nanonla-l24-av-qwen3-8b"
    assert found.keys() == {field.name for field in fields(Checkpoint)}


def test_info_wraps_and_says_a_place_once():
    done = run("info", str(tiny.paths()["av"]), columns=80)
    assert done.returncode == 0
    assert "…" not in done.stdout
    assert "extraction.layer_index" in done.stdout
    assert done.stdout.count("nla_meta.yaml") == 1
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80
    digest = Checkpoint.load(tiny.paths()["av"]).sidecar_hash
    assert digest in "".join(done.stdout.split())
    assert "not given: system, prefill, thinking" in done.stdout
    done = run("info", "ceselder/nanonla-l24-av-qwen3-8b", columns=80)
    assert done.stdout.count("preset") == 1
    assert "found at" not in done.stdout


def test_info_numbers_the_places_if_there_are_several():
    name = next(name for name, each in PRESETS.items() if each.baseline is not None)
    found = replace(Checkpoint.preset(name), source={"layer": "a in b.yaml", "marker": "c in d"})
    with cli.info.out.capture() as captured:
        cli.info.print_settings(name, found)
    assert "a [1]" in captured.get()
    assert "c [2]" in captured.get()
    assert captured.get().splitlines()[-2:] == ["[1] b.yaml", "[2] d"]


def test_an_interrupt_is_exit_code_130(monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupt)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 130
