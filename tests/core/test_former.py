"""Names that changed: the old ones work and warn, also in what was pickled."""

import copy
import json
import pickle
from dataclasses import dataclass

import pandas as pd
import pytest

from nnsight_nla.core import former
from nnsight_nla.core.former import Former, FormerKeys, HasFormer
from nnsight_nla.core.trust import Line

NAMES = {"old": "new"}


@dataclass(frozen=True)
class Record(HasFormer):
    new: int
    other: str = "x"
    old = Former("new")


def test_an_attribute_works_and_warns():
    with pytest.warns(DeprecationWarning, match=r"^Record\.old is called new now\.$") as caught:
        assert Record(3).old == 3
    assert caught[0].filename == __file__
    assert isinstance(Record.old, Former)


def test_a_record_that_was_pickled_under_the_old_name_is_read():
    record = Record(3)
    assert pickle.loads(pickle.dumps(record)) == record
    old = Record.__new__(Record)
    old.__setstate__({"old": 3, "other": "y"})
    assert old == Record(3, "y")


def test_a_dictionary_has_the_new_keys_and_knows_the_old():
    made = FormerKeys({"new": 1}, NAMES)
    with pytest.warns(DeprecationWarning, match="'old' is called 'new' now") as caught:
        assert made["old"] == 1
    assert caught[0].filename == __file__
    assert json.dumps(made) == '{"new": 1}'
    assert made == {"new": 1}
    assert "old" not in made
    for again in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        with pytest.warns(DeprecationWarning, match="old"):
            assert again["old"] == 1
    with pytest.raises(KeyError, match="nothing"):
        made["nothing"]


def test_a_table_has_the_new_columns_and_knows_the_old():
    made = former.table([{"new": 1, "b": 2}], NAMES)
    plain = pd.DataFrame([{"new": 1, "b": 2}])
    assert list(made.columns) == ["new", "b"]
    for take in (lambda: made["old"], lambda: made.old, lambda: made[["old"]]["new"]):
        with pytest.warns(DeprecationWarning, match="The column 'old' is called 'new'") as caught:
            assert take().tolist() == [1]
        assert caught[0].filename == __file__
    assert made.new.tolist() == [1]
    assert repr(made) == repr(plain)
    assert made._repr_html_() == plain._repr_html_()
    for ordinary in (made.copy(), made.head(1), pickle.loads(pickle.dumps(made)), made[["new"]]):
        assert type(ordinary) is pd.DataFrame
    with pytest.raises(KeyError):
        made["nothing"]
    with pytest.raises(AttributeError):
        _ = made.nothing


def test_a_column_of_the_users_own_is_not_renamed():
    made = former.table([{"new": 1}], NAMES)
    made["old"] = [7]
    assert made["old"].tolist() == made.old.tolist() == [7]


def test_a_line_of_a_label_has_its_fields_as_before():
    line = Line("reconstruction: strong", {"grade": "strong"})
    with pytest.warns(DeprecationWarning, match=r"trust\['grade'\]") as caught:
        assert line["grade"] == "strong"
    assert caught[0].filename == __file__
    assert line[:3] == "rec"
    assert json.dumps(line) == '"reconstruction: strong"'
    for again in (pickle.loads(pickle.dumps(line)), copy.deepcopy(line)):
        assert again == "reconstruction: strong"
        with pytest.warns(DeprecationWarning, match="grade"):
            assert again["grade"] == "strong"
