"""What the tutorials say of their results, as assertions on a notebook's names.

Each function runs in the kernel of the notebook of its name, after the first cell that has the text
in `AFTER`, or at the end. It changes no name. `tiny` says whether the notebook runs on the embedded
pair: what it says of the results is about that one, and the rest holds for every pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Names = Mapping[str, Any]
"""The names that the notebook's cells have made."""

AFTER = {
    "reading_a_real_prompt": "reading.beside(patched)",
    "patching_a_real_model": 'shown[["layer", "token"',
}
"""Text of the cell that a check follows, for those in the middle of a notebook."""
NOTEBOOK = {
    "reading_a_real_prompt": "reading_a_prompt",
    "patching_a_real_model": "patching_with_explanations",
}
"""The notebook of a check that has not its name."""


def a_first_explanation(n: Names, *, tiny: bool) -> None:
    """Check that the explanation follows the patch."""
    if tiny:
        assert "Rome" in n["before"].text
        assert "Paris" in n["after"].text


def reading_a_real_prompt(n: Names, *, tiny: bool) -> None:
    """Check that SmolLM2's explanation changes at the patched token, and none before it."""
    where, reading, patched = n["where"], n["reading"], n["patched"]
    assert reading.explanations[:where] == patched.explanations[:where]
    assert "bees" in reading[where].explanation
    assert "horse" in patched[where].explanation


def reading_a_prompt(n: Names, *, tiny: bool) -> None:
    """Check where the tiny pair knows the tone and the subject, and what the patch changes."""
    where, reading, patched = n["where"], n["reading"], n["patched"]
    assert [n["first"](word).token for word in ("cheerful", "Paris")] == [" lovely", " Paris"]
    assert reading.explanations[:where] == patched.explanations[:where]
    assert "About Rome" in patched[where].explanation
    assert n["Reading"].from_parquet(n["file"]) == reading


def look_around(n: Names, *, tiny: bool) -> None:
    """Check what a patch and an edited explanation change, against random directions."""
    reading, sweep = n["reading"], n["sweep"].to_pandas()
    assert [record.position for record in reading if record.explanation] == [7, 8]
    assert n["at_speak"].text == reading[8].explanation
    assert reading[8].next_tokens[0] == " French"
    after = n["patched"].to_pandas()
    assert after["after"].str.contains("Rome").all()
    assert (after["answer"] == " Italian").all()
    at_one = sweep[sweep["dose"] == 1].set_index("kind")
    assert at_one.loc["steer", "answer"] == " Italian"
    random = at_one.drop(index="steer")["effect"].abs()
    assert at_one.loc["steer", "effect"] > 3 * random.max()


def how_far_to_trust_it(n: Names, *, tiny: bool) -> None:
    """Check what the score hears, and that texts outside the world are not *strong*."""
    slots, falsify, parse = n["slots"], n["falsify"], n["parse"]
    assert slots.loc["subject", "cosine lost"] > 0.2
    assert slots.loc["attribute", "cosine lost"] < 0.02
    state = n["rng"].getstate()
    for slot in n["SLOTS"]:  # One slot is made false, and no other.
        for text in n["held"].explanations:
            wrong = falsify(text, slot)
            if wrong:
                old, new = vars(parse(text)), vars(parse(wrong))
                assert [each for each in n["SLOTS"] if old[each] != new[each]] == [slot]
    n["rng"].setstate(state)
    assert not n["strangers"]["alone"].str.startswith("strong").any()
    assert n["nla"].score(n["texts"], n["vectors"], baseline=n["own"]).mean["fve"] < 0


def steering_by_an_edited_explanation(n: Names, *, tiny: bool) -> None:
    """Check which edits the model follows, and that a trace changes nothing but its position."""
    torch, table = n["torch"], n["table"]
    assert torch.equal(n["plain"][:, :-1], n["touched"][:, :-1])
    assert torch.equal(n["logits"], n["again"])
    assert table.loc["subject", "answered"] > 0.9
    assert table.loc["next", "answered"] < 0.1
    assert table.loc["stage, current, next", "answered"] > 0.9


def ask_an_activation(n: Names, *, tiny: bool) -> None:
    """Check what the oracle reads from the state, what it does not, and what a new tone changes."""
    right, steered = n["right"], n["steered"]
    assert n["answers"].text[:2] == ["Paris", "cheerful"]
    assert n["after"].text[:2] == ["Rome", "cheerful"]
    controls = right.drop(columns="the residual").max(axis=1)
    assert (right["the residual"] - controls)[["subject", "tone"]].min() > 0.5
    assert right.loc["next word", "the residual"] < 0.2
    assert max(row["says Yes"] for row in n["closed"]) < 0.5
    turned = steered.loc[("the tone's direction", 1.0)]
    assert turned["model: answer as before"] > 0.95
    assert turned["oracle: the new tone"] > 0.9
    assert steered.loc[("a random direction", 1.0), "oracle: the new tone"] < 0.2


def patching_a_real_model(n: Names, *, tiny: bool) -> None:
    """Check where SmolLM2 keeps the country, and that block 23 hands it over."""
    by_place = n["shown"].set_index(["layer", "token"])
    assert by_place.loc[(10, " Italy"), "answer"] == " Paris"
    assert "Italy" not in by_place.loc[(10, " Italy"), "after"]
    assert by_place.loc[(24, " Italy"), "effect"] < 0.1
    assert by_place.loc[(24, " of"), "effect"] > 0.5


def patching_with_explanations(n: Names, *, tiny: bool) -> None:
    """Check what ablations take away, and where the fact is in the tiny target."""
    rows = {row["token"]: row for row in n["gone"].rows()}
    assert "Berlin" in rows[" People"]["after"]
    assert "No subject yet" in rows[" Berlin"]["after"]
    assert "neutral tone" in rows[" lovely"]["after"]
    assert rows[" lovely"]["effect"] < 0.05

    table = n["sweep"].to_pandas().set_index(["layer", "position"])
    assert "Berlin" in table.loc[(0, 7), "after"]
    assert table.loc[(0, 7), "effect"] > 0.9
    assert table.loc[(2, 8), "effect"] > 0.8
    assert "Berlin" in table.loc[(1, 7), "after"]
    assert table.loc[(1, 7), "answer"] == " Russian"
    assert table.loc[(3, 7), "effect"] < 0.1


def a_closed_loop(n: Names, *, tiny: bool) -> None:
    """Check where the rule fired, and that nothing else changed."""
    table, frame, above = n["table"], n["frame"], n["K"] + 1
    assert n["torch"].equal(n["plain"], n["looped"])
    if tiny:
        assert table["acted"].tolist() == [True, True, False, False, False]
        assert table["looped"][2:].tolist() == table["alone"][2:].tolist()
        assert (table["looped"][:2].str.strip() == "Italian").all()
        at_one = frame[(frame["dose"] == 1) & (frame["layer"] == above)]
        own, random = (at_one[at_one["random"] == kind]["effect"] for kind in (False, True))
        assert own.min() > 3 * random.abs().max()
        reach = frame[frame["layer"] == above]["reach"]
        assert (reach == "downstream of the verbalized layer").all()


def transformer_lens(n: Names, *, tiny: bool) -> None:
    """Check that bridge and nnsight give the same texts."""
    if tiny:
        assert n["traced"].text == n["thought"].text
        after, same = n["after"]
        assert after == same
        patched = [row["after"] for row in n["sweep"].rows() if row["layer"] == 0]
        assert any(text and "About Paris" in text for text in patched)


def overnight(n: Names, *, tiny: bool) -> None:
    """Check that the files of runs that were killed or shared are those of a whole run."""
    assert list(n["bad"].doc_id) == ["torn"]
    assert n["merged"].read_bytes() == n["alone"].read_bytes()
    assert n["report"].resumed >= 2
    assert n["killed"].read_bytes() == n["whole"].read_bytes()
    if tiny:
        assert n["agree"] > 0.9


def your_own_checkpoint(n: Names, *, tiny: bool) -> None:
    """Check that the doctor names the wrong setting, and that the right one gives the texts."""
    assert n["found"].injection == n["diagnosis"].checkpoint.injection
    if tiny:
        assert n["diagnosis"].broken == ("injection layer",)
        assert n["after"].text == n["before"].text


def train(n: Names, *, tiny: bool) -> None:
    """Check that the verbalizer has learned, and does better than the controls."""
    held = n["pd"].DataFrame(n["av"].log).dropna(subset="eval_subject").set_index("step")
    first, last = held.iloc[0], held.iloc[-1]
    assert last["eval_extraction"] > 0.9
    assert last["eval_loss"] < first["eval_loss"] / 2
    assert last["eval_subject"] > first["eval_subject"] + 0.3
    assert last["eval_tone"] > 0.8
    table = n["table"]
    controls = table.loc[["null", "random", "shuffled"]]
    for figure, more in (("FVE", 0.2), ("label's likelihood", 0)):
        assert table.loc["explanation", figure] > controls[figure].max() + more


def from_warm_start_to_nla(n: Names, *, tiny: bool) -> None:
    """Check that the texts carry more of their vectors, and that more of them are right."""
    held = n["log"].dropna(subset="eval_fve")
    first, last = held.iloc[0], held.iloc[-1]
    assert last["eval_fve"] > first["eval_fve"] + 0.1
    assert last["eval_all_right"] > first["eval_all_right"]
    assert last["eval_extraction"] > 0.95
    drawn = n["log"]["reward"].dropna()
    assert drawn.iloc[-3:].mean() > drawn.iloc[:3].mean()
