"""Immutable values for the short way to a container.

``dataclasses`` writes the methods of each class as source text and compiles it when the module is imported: half a
millisecond a class, and `inspect` with it. That was a quarter of the time of ``run``. A Record looks the same, frozen
and slotted, but its methods are written once; making one costs two microseconds instead of one. What is not on that
way uses dataclasses.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, ClassVar, NoReturn, TypeVar, dataclass_transform

EMPTY: MappingProxyType[str, Any] = MappingProxyType({})
"""The default of a field that is a mapping."""

_set = object.__setattr__


@dataclass_transform(frozen_default=True)
class _RecordType(type):
    """Turns the annotations of a class body into slots, and the values given to them into defaults."""

    def __new__(mcls, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> _RecordType:
        if any(getattr(base, "_fields", ()) for base in bases):
            raise TypeError(f"{name}: got {bases[0].__name__} as its base, want Record: it would lose its fields")
        if "__annotate_func__" in space or "__annotate__" in space:
            raise TypeError(
                f"{name}: got annotations that are not there yet, want `from __future__ import annotations`"
            )
        fields = tuple(field for field, kind in space.get("__annotations__", {}).items() if "ClassVar" not in str(kind))
        space["_defaults"] = {field: space.pop(field) for field in fields if field in space}
        space["_fields"] = space["__slots__"] = fields
        return super().__new__(mcls, name, bases, space)


class Record(metaclass=_RecordType):
    """Derive from it and annotate fields; a Record is not derived from further.

    ``__post_init__`` may check. ``unhashed``: fields that equality looks at and hash() does not.
    ``unshown``: fields that repr() leaves out.
    """

    _fields: ClassVar[tuple[str, ...]]
    _defaults: ClassVar[dict[str, Any]]
    unhashed: ClassVar[tuple[str, ...]] = ()
    unshown: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *values: Any, **named: Any) -> None:
        fields = self._fields
        if len(values) > len(fields):
            raise TypeError(f"{type(self).__name__}: got {len(values)} values, want at most {len(fields)}")
        for field, value in zip(fields, values, strict=False):
            _set(self, field, value)
        for field in fields[len(values) :]:
            if field in named:
                _set(self, field, named.pop(field))
            elif field in self._defaults:
                _set(self, field, self._defaults[field])
            else:
                raise TypeError(f"{type(self).__name__}: got no {field}")
        if named:
            raise TypeError(f"{type(self).__name__}: got {', '.join(named)}, which it does not have or got before")
        self.__post_init__()

    def __post_init__(self) -> None:
        """Raises what a value is refused with."""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name}: cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name}: cannot be changed")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, field) == getattr(other, field) for field in self._fields)

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, field) for field in self._fields if field not in self.unhashed))

    def __repr__(self) -> str:
        shown = (f"{field}={getattr(self, field)!r}" for field in self._fields if field not in self.unshown)
        return f"{type(self).__name__}({', '.join(shown)})"

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), tuple(getattr(self, field) for field in self._fields)


R = TypeVar("R", bound=Record)


def replace(record: R, **changes: Any) -> R:
    """A copy with other values."""
    return type(record)(**{**as_dict(record), **changes})


def as_dict(record: Record) -> dict[str, Any]:
    """Field names and values; values that are records stay records."""
    return {field: getattr(record, field) for field in record._fields}
