"""`onesec bench --quick` runs every scenario end to end on tiny data. Nothing here looks at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.macro.catalogue import SCENARIOS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(900)


def bench(*words: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "onesec", "bench", *map(str, words)],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture(scope="module")
def results(real_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    bench("--quick", "--place", place)
    return place / "results"


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_gives_its_figures(results: Path, name: str) -> None:
    document = json.loads((results / f"{name}.json").read_text())
    assert document["size"] == "quick"
    assert document["figures"]
    for figure in document["figures"]:
        assert figure["low"] <= figure["value"] <= figure["high"]
    assert document["machine"]["kernel"] == os.uname().release


def test_a_sequential_read_was_cold_and_its_proof_sees_pages(results: Path) -> None:
    conditions = json.loads((results / "seqread.json").read_text())["conditions"]
    before = conditions["pages_before_each_read"]
    assert before["resident_pages"] <= before["pages"] / 1000
    assert before["pages"] > 2 * conditions["file_bytes"] / 4096
    assert conditions["pages_after_a_read"] == conditions["file_bytes"] / 4096


def test_the_report_covers_every_scenario(results: Path) -> None:
    page = (results / "report.html").read_text()
    assert [name for name in SCENARIOS if f'id="{name}"' not in page] == []


def test_scenarios_are_listed_and_unknown_ones_refused(real_machine: None) -> None:
    assert [line.split()[0] for line in bench("--list").stdout.splitlines()] == list(SCENARIOS)
    assert "no-such: no such scenario" in bench("no-such", status=2).stderr
    assert "--rounds: got 0" in bench("--rounds", "0", status=2).stderr
