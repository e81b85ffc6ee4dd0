"""Two readings of one zip (CVE-2025-54368, GHSA-pqhf-p39g-3x64) and other ways in which a wheel can lie."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile

import pytest

from imagebuilder.errors import BadWheelError
from imagebuilder.wheel import Places, Wheel
from tests.support.wheels import archive, opened, record_row, wheel, wheel_files

NAME = "demo-1.0-py3-none-any.whl"
INFO = "demo-1.0.dist-info"
PLACES = Places("/usr/bin/python3.11", "lib", "bin", "usr", "include")


def read(data: bytes, filename: str = NAME) -> dict[str, bytes]:
    with opened(data) as fd, Wheel(fd, filename) as made:
        return {file.path: b"".join(made.read(file.content)) for file in made.place(PLACES)}


def duplicated() -> bytes:
    target = io.BytesIO(wheel())
    with warnings.catch_warnings(), zipfile.ZipFile(target, "a") as made:
        warnings.simplefilter("ignore")
        made.writestr("demo.py", b"EVIL = 1\n")
    return target.getvalue()


def named(path: str) -> bytes:
    return wheel(files={path: b"x"})


def raw_name(old: bytes, new: bytes, *, only_first: bool = False) -> bytes:
    assert len(old) == len(new)
    return wheel(files={old.decode(): b"x"}).replace(old, new, 1 if only_first else -1)


def patched(signature: bytes, offset: int, form: str, value: int) -> bytes:
    data = bytearray(wheel())
    struct.pack_into(form, data, data.index(signature) + offset, value)
    return bytes(data)


def with_gap() -> bytes:
    """Bytes between the members and the central directory, whose place the end record gives rightly."""
    data = wheel()
    at = data.index(b"PK\x01\x02")
    end = bytearray(data[at:])
    struct.pack_into("<I", end, len(end) - 6, at + 7)
    return data[:at] + b"hidden!" + bytes(end)


def with_record(change: str) -> bytes:
    files = wheel_files("demo", "1.0", {"demo.py": b"VALUE = 1\n"})
    rows = files[f"{INFO}/RECORD"].decode()
    files[f"{INFO}/RECORD"] = {
        "unlisted": "".join(row for row in rows.splitlines(True) if not row.startswith("demo.py")),
        "absent": rows + record_row("ghost.py", b""),
        "wrong hash": rows.replace(record_row("demo.py", b"VALUE = 1\n"), record_row("demo.py", b"VALUE = 2\n")),
        "wrong size": rows.replace(",10\n", ",11\n"),
        "no hash": rows.replace(record_row("demo.py", b"VALUE = 1\n"), "demo.py,,\n"),
        "md5": rows.replace(record_row("demo.py", b"VALUE = 1\n"), "demo.py,md5=1B2M2Y8AsgTpgAmY7PhCfg,10\n"),
        "twice": rows + record_row("demo.py", b"VALUE = 1\n"),
        "short row": rows + "demo.py\n",
    }[change].encode()
    return archive(files)


def symlink() -> bytes:
    return archive(wheel_files("demo", "1.0", {"demo.py": b"/etc/shadow"}), modes={"demo.py": 0o120777})


def entry_point(line: str) -> bytes:
    return wheel(files={f"{INFO}/entry_points.txt": f"[console_scripts]\n{line}\n".encode()})


HOSTILE = {
    "a name that occurs twice": duplicated(),
    "trailing data": wheel() + b"more",
    "data before the first member": b"more" + wheel(),
    "a gap before the central directory": with_gap(),
    "an archive comment": wheel()[:-2] + b"\x04\x00more",
    "a file cut short": wheel()[:-30],
    "no zip at all": b"PK\x05\x06",
    "a local header with another name": raw_name(b"aaaa.py", b"bbbb.py", only_first=True),
    "a name with NUL": raw_name(b"aaaa.py", b"aa\x00a.py"),
    "a name with a backslash": raw_name(b"aaaa.py", b"aa\\a.py"),
    "a name of another code page": raw_name(b"aaaa.py", b"aa\xe9a.py"),
    "an absolute name": named("/etc/cron.d/x"),
    "a name that climbs": named("../../etc/cron.d/x"),
    "a name that climbs in the middle": named("a/../../b"),
    "a name with an empty component": named("a//b"),
    "a name with a dot component": named("a/./b"),
    "a file that is a directory as well": wheel(files={"a": b"1", "a/b": b"2"}),
    "a symlink": symlink(),
    "another size in the local header": patched(b"PK\x03\x04", 22, "<I", 5),
    "another checksum in the local header": patched(b"PK\x03\x04", 14, "<I", 5),
    "another method in the local header": patched(b"PK\x03\x04", 8, "<H", 0),
    "an encrypted member": patched(b"PK\x01\x02", 8, "<H", 1),
    "an unknown method": patched(b"PK\x01\x02", 10, "<H", 12),
    "a member of another disk": patched(b"PK\x01\x02", 34, "<H", 1),
    "a member count that is too low": patched(b"PK\x05\x06", 10, "<H", 1),
    "a central directory elsewhere": patched(b"PK\x05\x06", 16, "<I", 4),
    "a file that RECORD does not name": with_record("unlisted"),
    "a RECORD row without a file": with_record("absent"),
    "a RECORD with another hash": with_record("wrong hash"),
    "a RECORD with another size": with_record("wrong size"),
    "a RECORD row without a hash": with_record("no hash"),
    "a RECORD with a weak hash": with_record("md5"),
    "a RECORD that names a file twice": with_record("twice"),
    "a RECORD with a short row": with_record("short row"),
    "no RECORD": archive({f"{INFO}/WHEEL": b"Wheel-Version: 1.0\n"}),
    "two dist-infos": wheel(files={"other-1.0.dist-info/METADATA": b""}),
    "another wheel format": wheel(files={f"{INFO}/WHEEL": b"Wheel-Version: 2.0\n"}),
    "a .data part that does not exist": wheel(files={"demo-1.0.data/root/etc/passwd": b""}),
    "two files for one path": wheel(files={"a.py": b"1", "demo-1.0.data/purelib/a.py": b"2"}),
    "a script name with a slash": entry_point("../../etc/x = demo:main"),
    "code in an entry point": entry_point("x = demo;import os:main"),
    "a call in an entry point": entry_point("x = demo:main(); evil"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_wheel_is_refused(case: str) -> None:
    with pytest.raises(BadWheelError) as caught:
        read(HOSTILE[case])
    assert str(caught.value).startswith(NAME)
    assert "\n" not in str(caught.value)


def test_a_wheel_named_after_another_project_is_refused() -> None:
    with pytest.raises(BadWheelError, match="dist-info"):
        read(wheel(), "numpy-1.0-py3-none-any.whl")


def test_every_flipped_byte_is_refused_or_changes_nothing() -> None:
    good = wheel()
    want = read(good)
    for at in range(len(good)):
        broken = bytearray(good)
        broken[at] ^= 0x41
        try:
            got = read(bytes(broken))
        except BadWheelError:
            continue
        assert {path: data for path, data in got.items() if "RECORD" not in path} == {
            path: data for path, data in want.items() if "RECORD" not in path
        }, f"byte {at}"


def test_every_truncation_is_refused() -> None:
    good = wheel()
    for length in range(len(good)):
        with pytest.raises(BadWheelError):
            read(good[:length])
