"""What a run step needs from the world: a container on the image so far. The real one is wired in by onesec."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from imagebuilder.plan import Context
from imagebuilder.upper import Base
from registry.model import Descriptor, Manifest

HOST_FILES = "/run/onesec"
"""Where a command finds what it needs of the host."""


@dataclass(frozen=True, slots=True)
class Command:
    """argv in the container. context.env is added to the image's own.

    secrets: host path of each id; seen as files under /run/secrets. files: contents, seen under HOST_FILES. Both are
    copies in memory, in this container alone and never in the layer. variables: of the environment of this command, not
    of the image.
    """

    argv: tuple[str, ...]
    context: Context = field(default_factory=Context)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Changes:
    """What commands left. upper: an overlay's upper directory. merged: where that overlay shows all of its tree. Both
    are there until the block ends. packs: of the base.
    """

    upper: str
    merged: str
    base: Base
    packs: Iterable[Descriptor]


class Sandbox(Protocol):
    def stop(self) -> None:
        """Ends the command that runs, and each that would be started later. Called from another thread than `run`."""

    def run(self, manifest: Manifest, commands: Sequence[Command], *, domain: str) -> AbstractContextManager[Changes]:
        """Runs commands one after the other on one writable layer over the image, with the host's network and
        certificates. domain: the trust domain of what the image consists of.

        Blocks. Nothing is to be read on stdin; output goes to stderr. Raises CommandError for the first that fails;
        whatever happens, nothing stays mounted and no process stays alive when the block ends.
        """
