"""Fuzzing by libFuzzer with ASan and UBSan, for ONESEC_FUZZ_SECONDS a target (default 1)."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support import seeds

ROOT = Path(__file__).parents[2]
SECONDS = int(os.environ.get("ONESEC_FUZZ_SECONDS", "1"))
SEED = seeds.draw()

Fuzz = Callable[[str, Sequence[bytes]], None]
Shown = list[str]

_SHOWN: Shown = []
"""What each target did, for the end of the session."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _SHOWN:
        terminalreporter.write_sep("-", f"fuzzed for {SECONDS} s each, seed {SEED}")
        for line in _SHOWN:
            terminalreporter.write_line(line)


@pytest.fixture
def shown() -> Shown:
    """Lines for the end of the session."""
    return _SHOWN


@pytest.fixture(scope="session")
def targets() -> Path:
    """Where the built targets are."""
    out = ROOT / "build/fuzz"
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run(["make", "-s", "-j2", "-C", str(ROOT / "cext/fuzz"), f"OUT={out}"], check=True, env=plain)
    return out


@pytest.fixture
def fuzz(targets: Path, tmp_path: Path, shown: Shown) -> Fuzz:
    """Runs a target from seeds, so that the first second is already spent behind the first checks."""

    def run(target: str, seeds: Sequence[bytes]) -> None:
        corpus = tmp_path / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(seeds):
            (corpus / str(number)).write_bytes(seed)
        words = [
            str(targets / target),
            f"-max_total_time={SECONDS}",
            f"-seed={SEED}",
            "-max_len=70000",
            "-rss_limit_mb=1024",
            "-verbosity=0",
            "-print_final_stats=1",
            str(corpus),
        ]
        plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        done = subprocess.run(words, cwd=tmp_path, env=plain, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"seed {SEED}: {done.stderr[-4000:]}"
        count = re.search(r"number_of_executed_units: (\d+)", done.stderr)
        assert count is not None, done.stderr[-4000:]
        shown.append(f"{target}: {count[1]} executions")

    return run
