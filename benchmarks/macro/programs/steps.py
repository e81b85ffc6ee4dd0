"""Runs commands one after another and prints the seconds of all and of each, when each began (ns of the monotonic
clock), and what the last one printed, as JSON.

python -m benchmarks.macro.programs.steps '[["podman", "pull", …], ["podman", "run", …]]'
"""

from __future__ import annotations

import json
import subprocess
import sys
import time


def main() -> None:
    calls: list[list[str]] = json.loads(sys.argv[1])
    times: list[float] = []
    began: list[int] = []
    output = b""
    for call in calls:
        began.append(time.monotonic_ns())
        done = subprocess.run(call, capture_output=True, check=False)
        times.append((time.monotonic_ns() - began[-1]) / 1e9)
        if done.returncode:
            sys.exit(f"{' '.join(call)}: {done.stderr.decode(errors='replace').strip()[-400:]}")
        output = done.stdout
    said = output.decode(errors="replace").strip().splitlines()
    print(json.dumps({"seconds": sum(times), "steps": times, "began": began, "said": said[-1] if said else ""}))


if __name__ == "__main__":
    main()
