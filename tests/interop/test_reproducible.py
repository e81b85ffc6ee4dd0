"""The same inputs give the same manifest, whoever builds it and wherever (docs/adr/0002-what-is-reproducible.md)."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.command import Onesec
from tests.support.oci import oci_layout, tar_of
from tests.support.waiting import PATIENCE_S

FILES = {f"package/module_{number}.py": f"value = {number}\n" * (1 + number * 40) for number in range(40)}
FILES |= {"package/data/large": "", "run.sh": "#!/bin/sh\n", "ünïcode/ÿ": "text"}


@dataclass(frozen=True, slots=True)
class Builder:
    """Somebody who builds. before: words that go before the command."""

    umask: int = 0o022
    environment: Mapping[str, str] = field(default_factory=dict)
    before: Callable[[], Sequence[str]] = tuple
    shuffled: bool = False
    later: bool = False


def one_core() -> Sequence[str]:
    return ("taskset", "-c", str(min(os.sched_getaffinity(0))))


OTHERS = {
    "umask": Builder(umask=0o077),
    "locale": Builder(environment={"LC_ALL": "POSIX", "LANG": "POSIX", "PYTHONUTF8": "0"}),
    "time zone": Builder(environment={"TZ": "Pacific/Chatham"}),
    "hash seed": Builder(environment={"PYTHONHASHSEED": "4242"}),
    "home": Builder(environment={"HOME": "/nonexistent", "USER": "somebody", "TMPDIR": "/var/tmp"}),
    "directory order": Builder(shuffled=True),
    "file times": Builder(later=True),
    "one core": Builder(before=one_core),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image to build on, the same bytes for everybody."""
    directory = tmp_path_factory.mktemp("base")
    tree = directory / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/motd").write_text("hello\n")
    os.link(tree / "etc/motd", tree / "etc/motd.again")
    (tree / "large").write_bytes(random.Random(1).randbytes(3_000_000))
    oci_layout(directory / "oci", tar_of(tree), {"Cmd": ["/run.sh"], "Env": ["PATH=/bin"]})
    return directory / "oci"


def manifest_of(directory: Path, base: Path, builder: Builder, files: Mapping[str, str] = FILES) -> str:
    """Builds in a checkout and a root of the builder's own; the digest of the manifest."""
    source = directory / "source"
    names = sorted(files)
    if builder.shuffled:
        random.Random(9).shuffle(names)
    before = os.umask(builder.umask)
    try:
        for name in names:
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(random.Random(2).randbytes(900_000) if name.endswith("large") else files[name].encode())
            if name.endswith(".sh"):
                path.chmod(path.stat().st_mode | 0o100)
            if builder.later:
                os.utime(path, (2_000_000_000, 2_000_000_000))
        (directory / "image.py").write_text(
            f"from onesec import Image\n"
            f"image = Image.from_oci({f'oci:{base}:t'!r}).copy_local({str(source)!r}, '/srv/app').env(MODE='test')\n"
        )
    finally:
        os.umask(before)
    onesec = Onesec(directory, builder.environment)
    words = [*builder.before(), *onesec.words("build", directory / "image.py", "-t", "app")]
    done = subprocess.run(
        words, env=onesec.surroundings, umask=builder.umask, capture_output=True, text=True, check=False,
        timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (listed,) = json.loads((onesec.root / "images/index.json").read_text())["manifests"]
    digest = listed["digest"]
    assert isinstance(digest, str)
    return digest


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory, base: Path) -> str:
    return manifest_of(tmp_path_factory.mktemp("usual"), base, Builder())


@pytest.mark.parametrize("axis", OTHERS)
def test_the_same_inputs_give_the_same_manifest_under_another(
    axis: str, tmp_path: Path, base: Path, usual: str
) -> None:
    assert manifest_of(tmp_path, base, OTHERS[axis]) == usual


def test_another_byte_gives_another_manifest(tmp_path: Path, base: Path, usual: str) -> None:
    """So that the others can fail."""
    name = "package/module_0.py"
    assert manifest_of(tmp_path, base, Builder(), FILES | {name: FILES[name].replace("0", "1")}) != usual
