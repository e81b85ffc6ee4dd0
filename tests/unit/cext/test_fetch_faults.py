"""The fetch engine and the getter under every failure of their environment that can be counted:
tests/support/fetch_faults.c and get_faults.c.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.origin import serving
from tests.support.waiting import PATIENCE_S

ROOT = Path(__file__).parents[3]
ENGINE = ("fetch*", "env", "log", "result")
PLAIN = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
DATA = bytes(at % 251 for at in range(300000))


@pytest.mark.parametrize(("name", "sockets"), [("fetch_faults", 2), ("get_faults", 1)])
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_every_call_may_fail(sanitizers: str, name: str, sockets: int, tmp_path: Path) -> None:
    program = str(tmp_path / "faults")
    words = ["cc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", f"-fsanitize={sanitizers}"]
    words += [f"-I{ROOT}/cext/src", str(ROOT / "tests/support" / f"{name}.c")]
    words += [str(path) for part in ENGINE for path in sorted((ROOT / "cext/src").glob(f"os_{part}.c"))]
    subprocess.run([*words, "-lcurl", "-pthread", "-o", program], check=True, env=PLAIN)
    with serving(DATA) as origin:
        call = [program, str(origin.port), hashlib.sha256(DATA).hexdigest(), str(len(DATA))]
        done = subprocess.run(call, capture_output=True, text=True, env=PLAIN, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-4000:]
    points = {tuple(line.split()[:2]): int(line.split()[2]) for line in done.stdout.splitlines()}
    assert points.keys() == {(kind, how) for kind in ("memory", "socket") for how in ("once", "forever")}
    assert points["memory", "once"] >= 10
    # At least. The getter's requests are few: where the first one is done before the next, they share its connection.
    assert points["socket", "once"] >= sockets
