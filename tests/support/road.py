"""The command for tests whose calls have to succeed, or fail as they say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.support.command import Onesec, Said


class Command:
    """`onesec` with a root and a run directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._onesec = Onesec(directory)

    @property
    def root(self) -> Path:
        return self._onesec.root

    @property
    def environment(self) -> Mapping[str, str]:
        return self._onesec.surroundings

    def __call__(self, *words: str | Path, status: int = 0) -> Said:
        said = self._onesec(*words)
        assert said.status == status, said.err
        return said
