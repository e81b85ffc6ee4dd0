"""What a run step needs from the world: a container on the image so far. The real one is wired in by onesec."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from imagebuilder.layer import Base
from imagebuilder.plan import Context
from registry.model import Descriptor, Manifest


@dataclass(frozen=True, slots=True)
class Command:
    """argv in the container. secrets: host path of each id; seen as files under /run/secrets, on tmpfs, never in the
    layer. context.env is added to the image's own.
    """

    argv: tuple[str, ...]
    context: Context = field(default_factory=Context)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Changes:
    """What commands left. upper: an overlay's upper directory, there until the block ends. packs: of the base."""

    upper: str
    base: Base
    packs: Iterable[Descriptor]


class Sandbox(Protocol):
    def run(self, manifest: Manifest, commands: Sequence[Command]) -> AbstractContextManager[Changes]:
        """Runs commands one after the other on one writable layer over the image, with the host's network and
        certificates. Blocks. Output goes to stderr. Raises CommandError for the first that fails; whatever happens,
        nothing stays mounted and no process stays alive when the block ends.
        """
