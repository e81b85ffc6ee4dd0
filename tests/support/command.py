"""`onesec` for tests: as a process of its own, or quicker in this one."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from onesec.cli.main import main
from tests.support.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Said:
    """What a call left."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error, without a hint. Fails if there is anything else that a user should not see."""
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.splitlines() if line.startswith("onesec: ")]
        assert len(lines) == 1, self.err
        return lines[0].removeprefix("onesec: ")


@dataclass(frozen=True, slots=True)
class Onesec:
    """The command with a root and a run directory of its own under directory."""

    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def run_dir(self) -> Path:
        return self.directory / "run"

    @property
    def surroundings(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "ONESEC_ROOT": str(self.root),
            "ONESEC_RUN": str(self.run_dir),
            **self.environment,
        }

    def words(self, *words: str | Path) -> list[str]:
        return [sys.executable, "-m", "onesec", *map(str, words)]

    def start(self, *words: str | Path) -> subprocess.Popen[bytes]:
        """In a session of its own, output thrown away."""
        return subprocess.Popen(
            self.words(*words),
            env=self.surroundings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __call__(self, *words: str | Path, timeout: float = PATIENCE_S) -> Said:
        call = self.words(*words)
        done = subprocess.run(
            call, env=self.surroundings, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
        return Said(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def here(self, *words: str | Path) -> Said:
        """In this process: no interpreter is started, so it costs milliseconds."""
        out, err = io.StringIO(), io.StringIO()
        interrupt = signal.getsignal(signal.SIGINT)
        try:
            with self._environment(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main([*map(str, words)])
        finally:
            signal.signal(signal.SIGINT, interrupt)  # a command that is done ignores it until its process ends
        return Said(status, out.getvalue(), err.getvalue())

    @contextlib.contextmanager
    def _environment(self) -> Iterator[None]:
        with mock.patch.dict(os.environ, self.surroundings, clear=True):
            yield
