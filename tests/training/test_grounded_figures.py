"""The texts of a verbalizer in training, against the texts that the vectors were read in."""

import pytest
import torch
import yaml

from nnsight_nla.core.baseline import Baseline
from nnsight_nla.evaluation.grounding import text_figures as figures_module
from nnsight_nla.training import Lora, Published, Settings, TrainingError, Watching, describe, train
from nnsight_nla.training import run as run_module
from nnsight_nla.training.grounded_figures import by_reconstruction, can_match, grounded_rows
from tests.helpers.published import WIDTH, WORDS, base, publish, records, tokenizer
from tests.training.test_best import entry, of_the_step

SETTINGS = Settings(steps=6, batch_size=9, learning_rate=1e-3, warmup=2, lora=Lora(rank=2))
TEXT = "detokenized_text_truncated"
NULL = 18
"""A held-out row."""


def texts(number=24):
    """Rows that mention what their texts do; the second of a document has more of it."""
    return [
        {
            **row,
            "response": f'<explanation>\nOn "{WORDS[i % 4]}".\n</explanation>',
            TEXT: f"Document {i // 2} is on {WORDS[i // 2 % 4]}" + " and more" * (i % 2),
            "next_tokens": [" the", " a"],
        }
        for i, row in enumerate(records(number))
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    base(folder / "base")
    publish(folder / "plain.parquet", records())
    publish(folder / "texts.parquet", texts())
    publish(folder / "null.parquet", [{**row, TEXT: row[TEXT] if i != NULL else None}
                                      for i, row in enumerate(texts())])  # fmt: skip
    return folder


def trained(folder, out, file="texts", role="av", settings=SETTINGS, report=None, **watching):
    watching = {"every": 2, "rows": 6, "max_new_tokens": 2, **watching}
    return train(
        role, folder / f"{file}.parquet", base=folder / "base", out=out, settings=settings,
        held_out=0.6, watching=Watching(**watching), report=report,
    )  # fmt: skip


def grounded(found):
    return {name for line in found.log for name in line if name.startswith("eval_grounded")}


def test_numbers_and_documents_are_those_of_the_batches(folder):
    for limit in (None, 5):
        rows = Published(folder / "texts.parquet", part="held out", held_out=0.6, limit=limit)
        names = [name for batch in rows.batches(WIDTH) for name in batch.names]
        assert [f"{rows.file}, row {number}" for number in rows.numbers()] == names
        assert rows.documents() == [f"document {number // 2}" for number in rows.numbers()]


def test_each_text_is_compared_with_its_own_row(folder, tmp_path, monkeypatch):
    seen, real = [], figures_module.text_figures

    def look(told, rows):
        seen.append((told, rows))
        return real(told, rows)

    monkeypatch.setattr(figures_module, "text_figures", look)
    vectors = []
    judges = {"own": lambda _, __, held: vectors.append(held) or 0.0}
    found = trained(folder, tmp_path / "av", judges=judges)
    # Two tokens close no tag, so nothing is mentioned; what is expected next is not said.
    assert grounded(found) == {"eval_grounded_next", "eval_grounded_says_next"}
    given = texts()
    expected = torch.tensor([row["activation_vector"] for row in given])
    numbers = [int((expected == each).all(dim=1).nonzero()) for each in vectors[0]]
    labels, *measured = seen
    assert len(measured) == len(vectors) == 3
    for told, rows in measured:
        assert told == [""] * 6
        assert [row.text for row in rows] == [given[n][TEXT] for n in numbers]
        assert [row.document for row in rows] == [given[n]["doc_id"] for n in numbers]
        assert rows[0].next_tokens == (" the", " a")
        assert [f"<explanation>\n{row.label}\n</explanation>" for row in rows] == [
            given[n]["response"] for n in numbers
        ]
    # The names are known from the labels, which are compared before anything is loaded.
    assert labels[0] == [row.label for row in labels[1]]


def test_they_are_measured_where_there_are_texts(folder, tmp_path):
    one = SETTINGS.__class__(**{**vars(SETTINGS), "steps": 1})
    for name, options, measured in (
        ("plain", {}, False),
        ("texts", {"grounded": False}, False),
        ("texts", {"grounded": True}, True),
        ("null", {"rows": 999}, False),
        ("texts", {"role": "ar"}, False),
    ):
        lines = []
        out = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        found = trained(folder, out, name, settings=one, report=lines.append, **options)
        assert bool(grounded(found)) == measured
        said = [line for line in lines if line.startswith("no grounded figures: ")]
        assert bool(said) == (name == "null")


def test_what_cannot_be_compared_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "_load", lambda *_: pytest.fail("was loaded"))
    for name, role, message in (
        ("plain", "av", r"plain\.parquet does not have the texts .*extract` writes them"),
        ("null", "av", rf"null\.parquet, row {NULL} has no '{TEXT}', the text"),
        ("texts", "ar", r"grounded=True compares .*this trains a reconstructor"),
    ):
        with pytest.raises(TrainingError, match=message):
            trained(folder, tmp_path / "out", name, role, rows=999, grounded=True)
    with pytest.raises(TrainingError) as caught:
        trained(folder, tmp_path / "out", best="grounded_claims")
    assert str(caught.value) == (
        "best='grounded_claims' is not measured in this training. Expected one of loss, "
        "extraction, grounded_mentions_so_far, grounded_mentions_later, "
        "grounded_mentions_nowhere, grounded_says_next, grounded_next."
    )
    assert list(tmp_path.iterdir()) == []


def test_the_best_is_kept_by_a_figure_that_a_measurement_may_lack(folder, tmp_path, monkeypatch):
    out = tmp_path / "av"
    step = of_the_step(out, {2: 2, 4: 4, 6: 6})
    values = {2: {}, 4: {"mentions_so_far": 0.5}, 6: {"mentions_so_far": 0.4}}
    labels = {"mentions_so_far": 1.0}
    monkeypatch.setattr(
        figures_module, "text_figures", lambda told, _: values[step()] if not told[0] else labels
    )
    found = trained(folder, out, best="grounded_mentions_so_far")
    assert grounded(found) == {"eval_grounded_mentions_so_far"}
    assert entry(out)["kept_step"] == 4
    assert yaml.safe_load((out / "nla_meta.yaml").read_text("utf-8"))["training_log"] == found.log


class Fake:
    """Reconstructs the vector whose number a text names."""

    def __init__(self, vectors):
        self.vectors, self.asked = vectors, []

    def reconstruct(self, told):
        self.asked.append(told)
        return torch.stack([self.vectors[int(text.split()[-1])] for text in told])


def test_a_reconstructor_tells_the_own_vector_from_three_others(monkeypatch):
    checkpoint = describe(tokenizer(), layer=1, d_model=WIDTH)
    vectors = torch.eye(WIDTH)[:8] + 0.1
    object.__setattr__(checkpoint, "baseline", Baseline.from_vectors(vectors, name="these"))
    fake = Fake(vectors)
    monkeypatch.setattr("nnsight_nla.nla.NLA", lambda *_, **__: fake)
    documents = [f"document {n // 2}" for n in range(8)]  # Two rows each, four documents.
    measure = by_reconstruction("base", "ar", checkpoint, documents)
    own = [f"vector {n}" for n in range(8)]
    assert measure(own, own, vectors)["grounded_source"] == 1
    assert measure(own, own, vectors)["fve"] == pytest.approx(1, abs=1e-5)
    # Two malformed replies, and two that name a vector of another document: all candidates are of
    # the other three documents, so one of two vectors of a document may be among them.
    told = ["", "", *own[2:6], "vector 0", "vector 0"]
    fake.asked.clear()
    found = measure(told, own, vectors)
    assert fake.asked == [[*own[2:6], "vector 0"]]  # Each once.
    assert found["grounded_source"] == 4 / 8
    near = torch.nn.functional.cosine_similarity
    cosines = [0, 0, 1, 1, 1, 1, *(float(near(vectors[0], vectors[n], dim=0)) for n in (6, 7))]
    over = checkpoint.baseline
    assert over is not None
    expected = sum(over.fve(2 * (1 - each)) for each in cosines) / 8
    assert found["fve"] == pytest.approx(expected, abs=1e-5)
    assert measure([""] * 8, own, vectors)["grounded_source"] == 0
    # With three documents there is nothing to choose from.
    assert can_match(documents)
    assert not can_match(documents[:6])
    assert "grounded_source" not in by_reconstruction("base", "ar", checkpoint, None)(
        own, own, vectors
    )


def test_a_reconstructor_measures_a_training(folder, tmp_path):
    ar = trained(folder, tmp_path / "ar", role="ar").folder
    one = Settings(**{**vars(SETTINGS), "steps": 2})
    found = trained(folder, tmp_path / "av", settings=one, ar=ar, best="grounded_source")
    assert found.log[-1]["eval_grounded_source"] == 0  # No proper reply in two tokens.
    assert found.log[-1]["eval_fve"] == pytest.approx(1 - 2 / found.checkpoint.baseline.value)
    plain = trained(folder, tmp_path / "plain", settings=one, ar=ar, grounded=False)
    assert not grounded(plain)
    assert plain.log[-1]["eval_fve"] == found.log[-1]["eval_fve"]


def test_labels_are_those_of_the_rows(folder):
    """Of a file whose labels are in their tags, as of one where they are not."""
    rows = Published(folder / "texts.parquet", part="held out", held_out=0.6, limit=3)
    found = grounded_rows(rows, WIDTH)
    assert [row.label for row in found] == [f'On "{WORDS[n % 4]}".' for n in rows.numbers()]
    # What follows in the document is known from its other row.
    assert [row.rest for row in found] == [" and more" * (1 - n % 2) for n in rows.numbers()]
