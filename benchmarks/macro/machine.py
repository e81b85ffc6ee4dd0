"""What the figures were measured on: cores, kernel, disk, and the versions of everything that took part."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path

_CHECKOUT = Path(__file__).parents[2]
_PROGRAMS: dict[str, tuple[str, ...]] = {
    "zstd": ("zstd", "--version"),
    "tar": ("tar", "--version"),
    "casync": ("casync", "--version"),
    "desync": ("desync", "--version"),
    "crun": ("crun", "--version"),
    "podman": ("podman", "--version"),
    "docker-registry": ("docker-registry", "--version"),
}
_NUMBER = re.compile(r"\d+(?:\.\d+)+|\b\d+\b")


def machine(place: str | os.PathLike[str] = "/") -> dict[str, object]:
    """place: the directory whose disk counts."""
    line = next((line for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    model = line.partition(": ")[2]
    memory = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    return {
        "cpu": model or platform.machine(),
        "cores": os.cpu_count(),
        "memory_kib": memory,
        "kernel": platform.release(),
        "distribution": _distribution(),
        "disk": _disk(place),
        "python": platform.python_version(),
        "programs": {name: found for name, call in _PROGRAMS.items() if (found := _version(call))},
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load": round(os.getloadavg()[0], 2),
        "commit": _commit(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "unknown"


def _disk(place: str | os.PathLike[str]) -> str:
    """File system and device below a directory."""
    done = subprocess.run(
        ["findmnt", "-n", "-o", "FSTYPE,SOURCE", "-T", os.fspath(place)], capture_output=True, text=True, check=False
    )
    return " on ".join(done.stdout.split()[:2]) or "unknown"


def _version(call: tuple[str, ...]) -> str | None:
    if shutil.which(call[0]) is None:
        return None
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    found = _NUMBER.search(done.stdout or done.stderr)
    return found.group() if found else "unknown"


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=_CHECKOUT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
