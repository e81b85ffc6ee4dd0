"""What was built before, under the keys of plans. A cache: what is broken or incomplete in it is made again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cext.errors import CorruptError
from imagebuilder.plan import Plan, Step
from registry.errors import BadDocumentError
from registry.layout import LOCAL_DOMAIN, Layout
from registry.model import LayerRecord, dump_json, parse_json

_RECORD_VERSION = 1


@dataclass(frozen=True, slots=True)
class StepResult:
    """layers: bottom first. base: config and trust domain of the image that the step brought, if it did."""

    layers: tuple[LayerRecord, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    domain: str = LOCAL_DOMAIN

    def dump(self) -> bytes:
        layers = [json.loads(layer.dump()) for layer in self.layers]
        return dump_json(
            {"version": _RECORD_VERSION, "layers": layers, "config": dict(self.config), "domain": self.domain}
        )

    @classmethod
    def parse(cls, raw: bytes) -> StepResult:
        record = parse_json(raw, "build step")
        if not isinstance(record, dict) or record.get("version") != _RECORD_VERSION:
            raise BadDocumentError("build step", "of another version")
        layers = tuple(LayerRecord.parse(dump_json(layer)) for layer in record["layers"])
        return cls(layers, record["config"], record["domain"])


def recall(layout: Layout, step: Step) -> StepResult | None:
    """What a step made before, if all of it is still there."""

    def whole(result: StepResult) -> bool:
        return all(layout.has(blob) for layer in result.layers for blob in layer.blobs)

    return _recall(layout.recall_bytes(step.key), whole)


def cached(layout: Layout, plan: Plan) -> frozenset[int]:
    """The numbers of the steps that a build would not make again."""
    return frozenset(step.number for step in plan.steps if recall(layout, step) is not None)


def _recall(raw: bytes | None, whole: Callable[[StepResult], bool]) -> StepResult | None:
    if raw is None:
        return None
    try:
        result = StepResult.parse(raw)
    except (CorruptError, KeyError, TypeError):
        return None  # a cache: what can't be read is made again
    return result if whole(result) else None
