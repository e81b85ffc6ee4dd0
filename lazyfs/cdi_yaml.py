"""The door to PyYAML: a document out of untrusted bytes, imported only for a spec that is YAML.

Aliases are refused: a few lines of them describe gigabytes. So are tags, merge keys and a key that stands twice, which
readers understand differently. Nesting is bounded before anything is built, since that is done by recursion in C.
"""

from __future__ import annotations

from typing import Any

import yaml

NESTING_MAX = 16
EVENTS_MAX = 200_000

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Strict(_Loader):  # type: ignore[misc]
    """YAML's safe subset, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if len(found) != len(node.value):
            raise yaml.YAMLError("a key stands twice in one mapping")
        return found

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge keys (<<) are keys like any other, and no field has that name."""


def document(data: bytes) -> object:
    """Raises ValueError."""
    try:
        text = data.decode("utf-8")
        depth = 0
        for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
            if number > EVENTS_MAX:
                raise ValueError(f"got over {EVENTS_MAX} parts")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise ValueError("anchors and aliases are not taken")
            if getattr(event, "tag", None) is not None:
                raise ValueError("tags are not taken")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > NESTING_MAX:
                raise ValueError(f"got over {NESTING_MAX} levels")
        return yaml.load(text, Loader=_Strict)  # derived from the safe loader
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
