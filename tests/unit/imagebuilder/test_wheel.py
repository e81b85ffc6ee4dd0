from __future__ import annotations

import csv
import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Mapping

import pytest

from imagebuilder.wheel import Places, Wheel
from tests.support.wheels import archive, opened, wheel, wheel_files

PLACES = Places(
    python="/usr/bin/python3.11",
    packages="usr/local/lib/python3.11/dist-packages",
    scripts="usr/local/bin",
    data="usr/local",
    headers="usr/local/include/python3.11",
)
INFO = "demo-1.0.dist-info"
PACKAGES = PLACES.packages


def unpacked(data: bytes) -> dict[str, bytes]:
    with opened(data) as fd, Wheel(fd, "demo-1.0-py3-none-any.whl") as made:
        return {file.path: b"".join(made.read(file.content)) for file in made.place(PLACES)}


def executables(data: bytes) -> set[str]:
    with opened(data) as fd, Wheel(fd, "demo-1.0-py3-none-any.whl") as made:
        return {file.path for file in made.place(PLACES) if file.executable}


def full() -> bytes:
    files: Mapping[str, bytes] = {
        "demo/__init__.py": b"def main():\n    print('ran')\n",
        "demo/big.bin": b"\x01\x02" * 2_000_000,
        "demo-1.0.data/scripts/old": b"#!python\nprint(1)\n",
        "demo-1.0.data/scripts/shell": b"#!/bin/sh\necho 1\n",
        "demo-1.0.data/data/share/demo/x": b"x",
        "demo-1.0.data/headers/demo.h": b"//",
        "demo-1.0.data/platlib/native.so": b"ELF",
        f"{INFO}/entry_points.txt": b"[console_scripts]\nDemo = demo:main [extra]\n[other]\nx = not a script\n",
        f"{INFO}/INSTALLER": b"somebody\n",
    }
    return wheel(files=files)


def test_files_end_where_pip_puts_them() -> None:
    assert set(unpacked(full())) == {
        f"{PACKAGES}/demo/__init__.py", f"{PACKAGES}/demo/big.bin", f"{PACKAGES}/native.so",
        "usr/local/bin/old", "usr/local/bin/shell", "usr/local/bin/Demo", "usr/local/share/demo/x",
        "usr/local/include/python3.11/demo/demo.h",
        *(f"{PACKAGES}/{INFO}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "INSTALLER", "entry_points.txt")),
    }  # fmt: skip
    assert executables(full()) == {"usr/local/bin/old", "usr/local/bin/shell", "usr/local/bin/Demo"}


def test_only_scripts_for_python_get_the_images_python() -> None:
    found = unpacked(full())
    assert found["usr/local/bin/old"] == b"#!/usr/bin/python3.11\nprint(1)\n"
    assert found["usr/local/bin/shell"].startswith(b"#!/bin/sh\n")


def test_an_entry_point_becomes_a_script_that_runs() -> None:
    script = unpacked(full())["usr/local/bin/Demo"]
    code = "import sys, types; m = types.ModuleType('demo'); m.main = lambda: print('ran')\nsys.modules['demo'] = m\n"
    done = subprocess.run([sys.executable, "-c", code + script.decode()], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ran\n")


def test_record_names_every_file_that_is_installed_with_its_hash() -> None:
    found = unpacked(full())
    rows = list(csv.reader(io.StringIO(found[f"{PACKAGES}/{INFO}/RECORD"].decode())))
    names = {row[0]: row for row in rows}
    assert len(names) == len(rows) == len(found)
    assert names["../../../bin/Demo"][2] == str(len(found["usr/local/bin/Demo"]))
    assert names[f"{INFO}/RECORD"] == [f"{INFO}/RECORD", "", ""]
    assert names["demo/big.bin"][1].startswith("sha256=")


def test_the_same_wheel_gives_the_same_files_in_the_same_order() -> None:
    with opened(full()) as fd, Wheel(fd, "demo-1.0-py3-none-any.whl") as made:
        once, twice = made.place(PLACES), made.place(PLACES)
    assert once == twice
    assert [file.path for file in once] == sorted(file.path for file in once)
    assert {file.mtime for file in once} == {1706933106, 315532800}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_content_comes_out_as_it_went_in_whatever_the_method(method: int) -> None:
    data = bytes(range(256)) * 9000
    files = wheel_files("demo", "1.0", {"demo.bin": data, "empty.py": b""})
    found = unpacked(archive(files, method=method))
    assert hashlib.sha256(found[f"{PACKAGES}/demo.bin"]).digest() == hashlib.sha256(data).digest()
    assert found[f"{PACKAGES}/empty.py"] == b""


def test_a_wheel_written_as_a_stream_with_data_descriptors_is_read() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: object) -> int:
            raise io.UnsupportedOperation

        def tell(self) -> int:
            raise io.UnsupportedOperation

    target = Pipe()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
        for path, data in wheel_files("demo", "1.0", {"demo.py": b"VALUE = 1\n"}).items():
            made.writestr(path, data)
    assert unpacked(target.getvalue())[f"{PACKAGES}/demo.py"] == b"VALUE = 1\n"
