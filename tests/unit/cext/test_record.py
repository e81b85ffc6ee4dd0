"""Records look like frozen dataclasses."""

from __future__ import annotations

import copy
import pickle
import types
from typing import ClassVar

import pytest

from cext.record import EMPTY, Record, as_dict, replace


class Point(Record):
    """A value with a default."""

    x: int
    y: int = 7
    seen: ClassVar[int] = 3


class Checked(Record):
    """A value that is refused when it is negative, with fields that count less."""

    unhashed = ("notes",)
    unshown = ("raw",)

    size: int
    notes: dict[str, str]
    raw: bytes = b""

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("negative")


def test_fields_come_by_place_or_by_name_and_have_defaults() -> None:
    assert (Point(1).x, Point(1).y, Point(1, 2).y, Point(y=5, x=4).x) == (1, 7, 2, 4)
    assert Point.seen == 3


@pytest.mark.parametrize(
    ("values", "named"), [((), {}), ((1, 2, 3), {}), ((1,), {"x": 2}), ((1,), {"z": 2}), ((), {"y": 1})]
)
def test_wrong_fields_are_refused(values: tuple[int, ...], named: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="Point"):
        Point(*values, **named)


def test_a_record_is_checked_when_it_is_made() -> None:
    with pytest.raises(ValueError, match="negative"):
        Checked(-1, {})


def test_a_record_cannot_be_changed_and_has_no_other_fields() -> None:
    point = Point(1)
    for name in ("x", "other"):
        with pytest.raises(AttributeError):
            setattr(point, name, 2)
    with pytest.raises(AttributeError):
        del point.x
    assert not hasattr(point, "__dict__")


def test_equality_hash_and_repr_go_by_the_fields() -> None:
    assert Point(1) == Point(1, 7)
    assert Point(1) != Point(2)
    assert Point(1) != (1, 7)
    assert len({Point(1), Point(1, 7), Point(2)}) == 2
    assert repr(Point(1)) == "Point(x=1, y=7)"
    checked = Checked(1, {"a": "b"}, b"long")
    assert hash(checked) == hash(Checked(1, {}, b"long"))
    assert checked != Checked(1, {}, b"long")
    assert repr(checked) == "Checked(size=1, notes={'a': 'b'})"


def test_records_are_copied_pickled_and_replaced() -> None:
    point = Point(3, 4)
    assert copy.copy(point) == copy.deepcopy(point) == pickle.loads(pickle.dumps(point)) == point
    assert replace(point, y=9) == Point(3, 9)
    assert as_dict(point) == {"x": 3, "y": 4}


def test_the_empty_mapping_cannot_be_filled() -> None:
    with pytest.raises(TypeError):
        EMPTY["a"] = 1  # type: ignore[index]


def test_a_record_is_not_derived_from_further() -> None:
    with pytest.raises(TypeError, match="would lose its fields"):

        class Point3(Point):
            z: int = 1


def test_annotations_that_are_made_later_are_refused() -> None:
    """Python 3.14 without the future import: a class without a field would be made, and nobody would notice."""
    with pytest.raises(TypeError, match="from __future__ import annotations"):
        types.new_class("Late", (Record,), exec_body=lambda space: space.update(__annotate_func__=dict))
