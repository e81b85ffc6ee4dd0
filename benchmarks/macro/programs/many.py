"""Runs commands at once and prints the seconds until the last had ended, those of each, and what they printed, as JSON.

python -m benchmarks.macro.programs.many '[["onesec", "run", …], ["onesec", "run", …]]'
"""

from __future__ import annotations

import json
import subprocess
import sys
import time


def main() -> None:
    calls: list[list[str]] = json.loads(sys.argv[1])
    started = time.perf_counter()
    running = [subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for call in calls]
    times: list[float] = []
    said: list[str] = []
    for one in running:  # they print a line each: no pipe fills up while another is waited for
        out, err = one.communicate()
        times.append(time.perf_counter() - started)
        if one.returncode:
            sys.exit(f"{' '.join(calls[len(said)][:8])}: {err.decode(errors='replace').strip()[-400:]}")
        said.append(out.decode(errors="replace").strip().splitlines()[-1])
    print(json.dumps({"seconds": max(times), "each": times, "said": said}))


if __name__ == "__main__":
    main()
