"""Images and trees that scenarios read: a real torch image, and tiny stand-ins for a quick run; made once per place.

Quick stand-ins consist of programs of this host with their libraries, so that containers start in them.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.macro.harness import CHECKOUT
from benchmarks.macro.scenario import Place, ScenarioError

_WORDS = ("index", "return", "value", "tensor", "self", "import", "kernel", "stream", "chunk", "pack", "layer", "mount")
_AGE = "time.clock_gettime(7) - int(open('/proc/self/stat').read().rpartition(')')[2].split()[19]) / 100"
"""Seconds since the process began, to the kernel's tick of 10 ms; 7 is CLOCK_BOOTTIME."""

_CUDA = """
from onesec import Image

image = Image.debian_slim(python_version="3.11").pip_install("torch==2.14.1")
"""

_RELATIVES = """
from onesec import Image

base = Image.debian_slim(python_version="3.11").pip_install("torch==2.13.0", "numpy")
"""

_LIBRARY = re.compile(r"(/\S+) \(0x")


@dataclass(frozen=True, slots=True)
class Source:
    """An image in the place's layout and the same files on its disk. workload: what a start of it runs, its program by
    a whole path; its last line of output is JSON, the sum in it the same everywhere.
    """

    reference: str
    plain: Path
    workload: tuple[str, ...]


def torch(place: Place) -> Source:
    """Debian with CPU torch, built by `onesec build`; quick: a shell that reads a few files."""
    if place.quick:
        return tiny(place)
    place.call(place.onesec("build", CHECKOUT / "examples/torch/image.py", "-t", "torch", "--no-boot-pack"))
    return Source("torch", _plain(place, "torch"), ("/usr/bin/python3", "-c", _script()))


def cuda_torch(place: Place) -> Source:
    """The same with torch's CUDA libraries, 5 GB of files; no GPU is needed for the workload."""
    if place.quick:
        return tiny(place)
    cuda(place)
    return Source("cuda", _plain(place, "cuda"), ("/usr/bin/python3", "-W", "ignore", "-c", _script()))


def cuda(place: Place) -> str:
    """Builds the image with torch and its CUDA libraries: about 5 GB of files. Returns its name."""
    file = place.path("cuda.py")
    file.write_text(_CUDA)
    place.call(place.onesec("build", file, "-t", "cuda", "--no-boot-pack"))
    return "cuda"


def relatives(place: Place, count: int) -> list[str]:
    """Names of images that share all layers but a small last one, each with the torch image's Python and packages;
    quick: with the shell.
    """
    names = [f"relative{number}" for number in range(count)]
    if place.quick:
        for number, name in enumerate(names):
            tree = place.path(f"tree-{name}")
            if not tree.is_dir():
                shutil.copytree(tiny(place).plain, tree, symlinks=True)
                (tree / "data/own").write_text(f"{number}\n")
            ingest(place, tree, name)
        return names
    file = place.path("relatives.py")
    for name in names:
        place.path(f"{name}.txt").write_text(f"{name}\n")
    file.write_text(_RELATIVES + "".join(f'{name} = base.copy_local("{name}.txt", "/app/own.txt")\n' for name in names))
    for name in names:
        place.call(place.onesec("build", f"{file}:{name}", "-t", name, "--no-boot-pack"))
    return names


def _script() -> str:
    script = (
        "import os, time; t, c = time.perf_counter(), time.process_time(); import torch; s = float(torch.ones(2).sum())"
    )
    script += "; t, c = time.perf_counter() - t, time.process_time() - c"
    script += f"; a, f = {_AGE}, int(os.environ.get('FIRST_NS', 0))"
    script += """; print('{"seconds": %r, "cpu": %r, "sum": %r, "age": %r, "first": %r}' % (t, c, s, a, f))"""
    return script


def tiny(place: Place) -> Source:
    """A shell that reads a few files, programs of this host."""
    plain = place.path("tiny")
    if not plain.is_dir():
        made = place.path("tiny.tmp")
        shutil.rmtree(made, ignore_errors=True)
        _programs(made, ("true", "sh", "cat"))
        for name in ("dev", "proc", "sys", "tmp", "etc"):
            (made / name).mkdir()
        fill(made / "data", files=40, size=200_000, seed=1)
        made.rename(plain)
    ingest(place, plain, "tiny")
    script = "cat /data/*/* > /dev/null; "
    script += """echo '{"seconds": 0.1, "cpu": 0.1, "sum": 2.0, "age": 0.1, "first": '${FIRST_NS:-0}'}'"""
    return Source("tiny", plain, ("/bin/sh", "-c", script))


def _programs(tree: Path, names: Sequence[str]) -> None:
    """Programs of the host in /bin of a tree, with the libraries that they load."""
    (tree / "bin").mkdir(parents=True)
    for name in names:
        program = shutil.which(name)
        if program is None:
            raise ScenarioError(f"{name}: not installed")
        shutil.copy(os.path.realpath(program), tree / "bin" / name)
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
        for library in _LIBRARY.findall(listed):
            target = tree / library.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(os.path.realpath(library), target)


def ingest(place: Place, tree: Path, reference: str, *, root: Path | None = None) -> None:
    """An image of a tree, made anew only if the layout has none of that name."""
    where = root or place.root
    index = where / "images/index.json"
    if index.exists() and f'"{reference}:latest"' in index.read_text():
        return
    place.call(place.program("ingest", where, tree, reference))


def _plain(place: Place, reference: str) -> Path:
    """The image's files on the disk, copied out of the mounted image once for each manifest."""
    plain = place.path(f"plain-{reference}")
    stamp = place.path(f"plain-{reference}.digest")
    digest = json.dumps(place.manifest(reference)["digest"])
    if not plain.is_dir() or not stamp.exists() or stamp.read_text() != digest:
        shutil.rmtree(plain, ignore_errors=True)
        with place.mounted(reference) as tree:
            plain.mkdir(parents=True)
            place.call(["cp", "-a", f"{tree}/.", plain])
        stamp.write_text(digest)
    return plain


def fingerprint(plain: Path) -> str:
    """What tells one tree from another: names, sizes and times of its files, without reading them. Our manifest of the
    same files changes with our formats, and what a native run leaves behind (bytecode, mount points) is no other tree.
    """
    digest = hashlib.sha256()
    for where, directories, names in os.walk(plain):
        directories[:] = sorted(set(directories) - {"__pycache__"})
        for name in sorted(names):
            path = os.path.join(where, name)
            found = os.lstat(path)
            digest.update(
                f"{os.path.relpath(path, plain)}\0{found.st_size}\0{found.st_mtime_ns}\0".encode(
                    "utf-8", "surrogateescape"
                )
            )
    return digest.hexdigest()


def text(size: int, seed: int) -> bytes:
    """Bytes that compress about as program code does, the same for the same seed."""
    chance = random.Random(seed)
    block = b" ".join(b"%s_%d" % (chance.choice(_WORDS).encode(), chance.randrange(9999)) for _ in range(4000))
    pieces: list[bytes] = []
    length = 0
    while length < size:
        at = chance.randrange(len(block) - 400)
        piece = block[at : at + chance.randrange(40, 400)] + chance.randbytes(chance.randrange(60))
        pieces.append(piece)
        length += len(piece)
    return b"".join(pieces)[:size]


def fill(tree: Path, *, files: int, size: int, seed: int) -> None:
    """Files of `size` bytes in all, in directories of twenty."""
    data = text(size, seed)
    each = max(1, size // files)
    for number in range(files):
        directory = tree / f"part{number // 20}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"file{number}").write_bytes(data[number * each : (number + 1) * each])
