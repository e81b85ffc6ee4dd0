"""`make demo`: builds a real image, starts it from an empty page cache, and says where the time went.

Everything stays below .demo/ in the checkout; the second time the build is cached. Needs root.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.macro.cold import drop

CHECKOUT = Path(__file__).parents[1]
PLACE = CHECKOUT / ".demo"
ENVIRONMENT = {**os.environ, "ONESEC_ROOT": str(PLACE / "root"), "ONESEC_RUN": str(PLACE / "run")}
# A cold start meets no server of an earlier one: it has a run directory of its own, and its server does not linger.
COLD = {**ENVIRONMENT, "ONESEC_RUN": str(PLACE / "cold"), "ONESEC_CONFIG": str(PLACE / "cold.toml")}
ROUNDS = 3
IN_CHROOT = """
mount --rbind /dev "$0/dev"
mount -t proc proc "$0/proc"
exec chroot "$0" /bin/sh -c 'cd /app && exec python3 app.py'
"""


def onesec(*words: str, capture: bool = False) -> str:
    """One call of the command; ends the demo if it fails."""
    call = [sys.executable, "-m", "onesec", *words]
    done = subprocess.run(
        call, cwd=CHECKOUT, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE if capture else None, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


def seconds(call: list[str], *, cold: bool) -> float:
    """Wall time of one call, after dropping the page cache if it is to be cold."""
    if cold:
        drop()
    started = time.perf_counter()
    environment = COLD if cold else ENVIRONMENT
    subprocess.run(call, cwd=CHECKOUT, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def plain_copy() -> Path:
    """The same files on the disk, copied out of the mounted image once."""
    plain, mounted = PLACE / "plain", PLACE / "mounted"
    if not (plain / "usr").is_dir():
        shutil.rmtree(plain, ignore_errors=True)
        mounted.mkdir(exist_ok=True)
        onesec("mount", "torch", str(mounted))
        try:
            subprocess.run(["cp", "-a", f"{mounted}/.", plain], check=True)
        finally:
            onesec("umount", str(mounted))
    for name in ("dev", "proc"):  # an image need not have them: the runtime makes its own
        (plain / name).mkdir(exist_ok=True)
    return plain


def main() -> None:
    PLACE.mkdir(exist_ok=True)
    (PLACE / "cold.toml").write_text("[run]\nlinger = 0\n")
    started = time.perf_counter()
    onesec("build", "examples/torch/image.py", "-t", "torch")
    built = time.perf_counter() - started
    onesec("profile", "torch")
    plain = plain_copy()
    lazy = [sys.executable, "-m", "onesec", "run", "torch"]
    native = ["unshare", "--mount", "sh", "-ec", IN_CHROOT, str(plain)]
    times: dict[str, list[float]] = {"lazy cold": [], "lazy warm": [], "native cold": [], "native warm": []}
    seconds(lazy, cold=False)  # starts the server that the warm calls meet
    for _ in range(ROUNDS):
        for name, call in (("lazy", lazy), ("native", native)):
            times[f"{name} cold"].append(seconds(call, cold=True))
            seconds(call, cold=False)
            times[f"{name} warm"].append(seconds(call, cold=False))
    drop()
    print("\nOne start with nothing in memory:")
    subprocess.run([*lazy[:-1], "--timeline", "-", "torch"], cwd=CHECKOUT, env=COLD, check=True)
    (image,) = [row for row in json.loads(onesec("images", "--json", capture=True)) if row["name"].startswith("torch")]
    print(f"\nimage {image['name']}: {image['size'] / 1e6:,.0f} MB, {image['files']:,} files; build {built:.1f} s")
    print("import torch and a tensor sum, whole call, medians; native is the same files on the local disk, in a chroot")
    for name, measured in times.items():
        print(f"  {name:12} {statistics.median(measured):6.2f} s")
    for one, other in (("lazy cold", "native cold"), ("lazy cold", "native warm"), ("lazy warm", "native warm")):
        pairs = zip(times[one], times[other], strict=True)
        print(f"  {one} / {other}: {statistics.median(a / b for a, b in pairs):.2f}x")


if __name__ == "__main__":
    main()
