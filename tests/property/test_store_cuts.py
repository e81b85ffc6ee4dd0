"""Power cuts: at every write, sync and deletion of a program that uses the store, with what was not synced lost or not
by the toss of a coin. What must hold afterwards is checked in tests/support/store_cuts.c; R4 of the test programme.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from tests.support import seeds
from tests.support.programs import STORE, build, plain_environment

ROUNDS = int(os.environ.get("ONESEC_CUTS", "2"))


def test_a_power_cut_at_any_moment_costs_nothing_that_was_durable(tmp_path: Path) -> None:
    program = build("store_cuts.c", tmp_path / "store_cuts", engines=STORE)
    cuts = 0
    first = seeds.draw()
    for seed in range(first, first + ROUNDS):
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
            words = [str(program), place, str(seed)]
            done = subprocess.run(words, env=plain_environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        cuts += int(done.stdout)
    assert cuts > 100 * ROUNDS
