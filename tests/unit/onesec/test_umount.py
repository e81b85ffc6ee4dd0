"""`onesec umount --all` where one of them cannot be undone."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from cext.errors import UnsupportedError
from lazyfs import lingering, mount_table
from lazyfs.mount_records import MountRecord, MountRecords
from onesec.cli import umount
from onesec.config import load


def test_one_that_cannot_be_undone_here_keeps_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load({"ONESEC_ROOT": str(tmp_path / "root"), "ONESEC_RUN": str(tmp_path / "run")})
    records = MountRecords(config.run_dir)
    for name in ("one", "two"):
        records.add(MountRecord(name, f"/{name}", "app", "sha256:0", "local", "portable"))
    asked: list[str] = []

    def unmount(path: str) -> str:
        asked.append(path)
        raise UnsupportedError("fusermount3: not installed", hint="apt-get install fuse3")

    def end_lingering(run_dir: str | os.PathLike[str]) -> int:
        asked.append("lingering")
        return 0

    monkeypatch.setattr(MountRecords, "prune", lambda self: [])
    monkeypatch.setattr(mount_table, "unmount", unmount)
    monkeypatch.setattr(lingering, "end_lingering", end_lingering)
    assert umount.run(argparse.Namespace(directory=None, all=True), config) == 1
    assert asked == ["/one", "/two", "lingering"]
    assert capsys.readouterr().err.count("onesec: fusermount3: not installed") == 2
