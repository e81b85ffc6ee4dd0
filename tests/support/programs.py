"""C programs of the tests, built from the engines' sources without Python."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from glob import glob
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLAKE3 = sorted(glob("/usr/share/cargo/registry/blake3-*/c"))[-1]
STORE = ("os_store*.c", "os_segment.c", "os_lmdb*.c", "os_env.c", "os_frame.c", "os_hash.c", "os_sha256*.c", "os_log.c")
_PLAIN = ("SSE2", "SSE41", "AVX2", "AVX512")


def plain_environment() -> dict[str, str]:
    """Without a sanitizer that was loaded for the interpreter."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def build(source: str, out: Path, *, engines: Sequence[str], flags: Sequence[str] = ()) -> Path:
    """tests/support/<source> with the engines that are named, as cext/src/<pattern>."""
    found = [str(path) for pattern in (*engines, "os_result.c") for path in sorted((ROOT / "cext/src").glob(pattern))]
    hashes = [f"{BLAKE3}/blake3{part}.c" for part in ("", "_dispatch", "_portable")]
    words = ["cc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", *flags]
    words += [*(f"-DBLAKE3_NO_{name}" for name in _PLAIN), "-DBLAKE3_USE_NEON=0"]
    words += [f"-I{ROOT}/cext/src", f"-I{BLAKE3}", str(ROOT / "tests/support" / source), *found, *hashes]
    words += ["-lzstd", "-llmdb", "-pthread", "-o", str(out)]
    subprocess.run(words, check=True, env=plain_environment())
    return out
