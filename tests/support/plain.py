"""Runs containers on plain images from tests, each client in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.trees import PlainImage
from tests.support.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Runner:
    """A root and a run directory, and the image to run on."""

    directory: Path
    image: PlainImage
    settings: Mapping[str, Any] = field(default_factory=dict)

    def words(self, options: Sequence[str], command: Sequence[str], config: Mapping[str, Any] | None) -> list[str]:
        document = {
            "image": {"metadata": str(self.image.metadata), "objects": str(self.image.objects)},
            "settings": {
                "root": str(self.directory / "root"),
                "run_dir": str(self.directory / "run"),
                **self.settings,
            },
            "options": list(options),
            "command": list(command),
            "config": {"config": dict(config or {})},
        }
        return [sys.executable, "-m", "tests.support.plain_run", json.dumps(document)]

    def __call__(
        self,
        *command: str,
        options: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        stdin: bytes = b"",
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.words(options, command, config),
            input=stdin,
            capture_output=True,
            cwd=ROOT,
            env=environment(),
            timeout=PATIENCE_S,
        )

    def start(
        self, *command: str, options: Sequence[str] = (), config: Mapping[str, Any] | None = None
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.words(options, command, config),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env=environment(),
        )

    def left(self) -> list[str]:
        """What containers left behind."""
        places = [self.directory / "run" / "containers", self.directory / "root" / "scratch"]
        return [str(path) for place in places if place.exists() for path in place.iterdir()]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}
