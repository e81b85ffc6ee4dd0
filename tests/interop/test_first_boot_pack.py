"""An image that nobody has profiled has a boot pack all the same: guessed by `import` and `build`, used by `run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from registry.model import BOOTPACK
from tests.support.oci import oci_layout, tar_of
from tests.support.road import Command


@pytest.fixture
def onesec(real_machine: None, tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.fixture
def source(tmp_path: Path, tool: Path) -> str:
    """An image that starts a static program, beside a file that no start needs."""
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    for name in ("dev", "proc", "sys", "etc", "data"):
        (tree / name).mkdir()
    (tree / "bin/tool").write_bytes(tool.read_bytes())
    (tree / "bin/tool").chmod(0o755)
    (tree / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (tree / "data/unneeded").write_bytes(bytes(range(256)) * 1000)
    oci_layout(tmp_path / "oci", tar_of(tree), {"Cmd": ["/bin/tool", "words", "started"]})
    return f"oci:{tmp_path / 'oci'}:t"


def boot_packs(onesec: Command, name: str) -> list[dict[str, Any]]:
    manifest = json.loads(onesec("inspect", name, "--json").out)["manifest"]
    return [blob for blob in manifest["layers"] if blob["mediaType"] == BOOTPACK]


def digest(onesec: Command, *words: str | Path) -> str:
    return onesec(*words).out.splitlines()[-1]


def test_an_imported_image_starts_with_what_was_guessed(onesec: Command, source: str, tool: Path) -> None:
    onesec("import", source, "-t", "app")
    (pack,) = boot_packs(onesec, "app")
    assert 0 < pack["size"] < tool.stat().st_size + 8192  # the program and /etc/passwd, and not what lies beside them
    done = onesec("run", "--timeline", "-", "app")
    assert done.out == "started\n"
    assert "1 of 1 frames" in done.err
    onesec("verify", "app", "--deep")
    onesec("gc")
    onesec("verify", "app", "--deep")


def test_who_wants_none_gets_none(onesec: Command, source: str) -> None:
    onesec("import", source, "-t", "app", "--no-boot-pack")
    assert boot_packs(onesec, "app") == []
    assert onesec("run", "app").out == "started\n"


def test_the_same_source_gives_the_same_digest_and_is_guessed_once(
    onesec: Command, source: str, tmp_path: Path
) -> None:
    first = onesec("import", source, "-t", "app")
    again = onesec("import", source, "-t", "again")
    other = Command(tmp_path / "other")("import", source, "-t", "app")
    assert len({one.out.splitlines()[-1] for one in (first, again, other)}) == 1
    assert "guessing" in first.err
    assert "guessing" not in again.err


def test_a_build_guesses_for_its_own_command(onesec: Command, source: str, tmp_path: Path) -> None:
    file = tmp_path / "image.py"
    text = f"from onesec import Image\nimage = Image.from_oci({source!r})"
    file.write_text(f"{text}.cmd('/bin/tool', 'words', 'built')\n")
    made = digest(onesec, "build", file, "-t", "app")
    assert (
        digest(onesec, "build", file, "-t", "app") == digest(onesec, "build", file, "--no-cache", "-t", "app") == made
    )
    assert len(boot_packs(onesec, "app")) == 1
    assert onesec("run", "app").out == "built\n"
    assert digest(onesec, "build", file, "--no-boot-pack", "-t", "app") != made
    assert boot_packs(onesec, "app") == []
    file.write_text(f"{text}.cmd('/bin/nothing')\n")
    onesec("build", file, "-t", "app")
    assert boot_packs(onesec, "app") == []


def test_a_profile_takes_the_place_of_a_guess(onesec: Command, source: str) -> None:
    onesec("import", source, "-t", "app")
    (guessed,) = boot_packs(onesec, "app")
    onesec("profile", "app")
    (profiled,) = boot_packs(onesec, "app")
    assert profiled["digest"] != guessed["digest"]


def test_a_command_that_is_no_text_is_refused_in_one_line(onesec: Command, tmp_path: Path) -> None:
    (tmp_path / "tree/bin").mkdir(parents=True)
    oci_layout(tmp_path / "oci", tar_of(tmp_path / "tree"), {"Cmd": ["\ud800"]})
    said = onesec("import", f"oci:{tmp_path / 'oci'}:t", "-t", "app", status=1)
    assert "Cmd: want a list of strings without NUL" in said.error
