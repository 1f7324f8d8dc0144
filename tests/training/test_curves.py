"""The course of a training as a figure."""

import json
from types import SimpleNamespace

import pytest

from nnsight_nla.training import TrainingError, plot_log
from nnsight_nla.view.figure import TEMPLATE

LOG = [
    {"step": 1, "loss": 3.0},
    {"step": 2, "loss": 2.0},
    {"step": 2, "eval_loss": 2.5, "eval_fve": 0.1},
    {"step": 4, "eval_loss": 1.5, "eval_fve": 0.6, "kept": 1.0},
]


def drawn(figure):
    return {trace.name: (list(trace.x), list(trace.y)) for trace in figure.data}


def test_losses_and_figures_have_a_panel_each():
    figure = plot_log(LOG)
    assert drawn(figure) == {
        "training loss": ([1, 2], [3.0, 2.0]),
        "held-out loss": ([2, 4], [2.5, 1.5]),
        "fve": ([2, 4], [0.1, 0.6]),
    }
    assert [trace.xaxis for trace in figure.data] == ["x", "x", "x2"]
    assert [line.x0 for line in figure.layout.shapes] == [4, 4]
    assert [each.text for each in figure.layout.annotations] == ["loss", "held-out rows", "kept"]
    assert figure.layout.template.layout.font.color == TEMPLATE["layout"]["font"]["color"]
    json.loads(figure.to_json())


def test_some_of_the_figures():
    assert list(drawn(plot_log(LOG, only=["fve"]))) == ["fve"]
    assert list(drawn(plot_log(LOG, only=["loss"]))) == ["training loss", "held-out loss"]
    assert list(drawn(plot_log(LOG[:2]))) == ["training loss"]
    with pytest.raises(TrainingError, match=r"the log has no 'cosine'. It has 'loss', 'fve'"):
        plot_log(LOG, only=["cosine"])


def test_from_what_train_returned_and_from_folders(tmp_path):
    assert drawn(plot_log(SimpleNamespace(log=LOG))) == drawn(plot_log(LOG))
    done = tmp_path / "av"
    done.mkdir()
    (done / "nla_meta.yaml").write_text(f"training_log: {json.dumps(LOG)}\n", "utf-8")
    assert drawn(plot_log(done)) == drawn(plot_log(str(done))) == drawn(plot_log(LOG))

    running = tmp_path / "ar.training"
    for step in (1, 2):
        state = running / f"checkpoint-{step}" / "trainer_state.json"
        state.parent.mkdir(parents=True)
        lines = [{**line, "learning_rate": 0.1, "epoch": 0.5} for line in LOG[: step + 1]]
        state.write_text(json.dumps({"log_history": lines}), "utf-8")
    torn = running / "checkpoint-3" / "trainer_state.json"
    torn.parent.mkdir()
    torn.write_text('{"log_hist', "utf-8")
    for folder in (tmp_path / "ar", running):
        assert drawn(plot_log(folder)) == drawn(plot_log(LOG[:3]))


def test_something_else_is_named(tmp_path):
    for given in (tmp_path, 3, [1], []):
        with pytest.raises(TrainingError, match=r"expected what train\(\) returned, its log, or"):
            plot_log(given)
