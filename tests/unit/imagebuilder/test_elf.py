from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest

from imagebuilder import elf

LIBRARY = """
#include <stdio.h>
static const char *names[] = {"a", "b", "c"};
const char *name(int i) { return names[i]; }
__attribute__((constructor)) static void first(void) { puts("first"); }
__attribute__((constructor)) static void second(void) { puts("second"); }
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, real_machine: None) -> Path:
    place = tmp_path_factory.mktemp("elf")
    (place / "lib.c").write_text(LIBRARY)
    (place / "main.c").write_text("const char *name(int); int main(void) { return *name(0) != 'a'; }")
    run = ["-Wl,--enable-new-dtags,-rpath,$ORIGIN/../lib:/opt/x"]
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", "libx.so", "lib.c"], cwd=place, check=True)
    subprocess.run(["cc", "-o", "main", "main.c", "-L.", "-lx", *run], cwd=place, check=True)
    return place


def parse(data: bytes) -> elf.Elf | None:
    return elf.parse(lambda offset, size: data[offset : offset + size], len(data))


def sections(path: Path) -> dict[str, tuple[int, int]]:
    """Places in the file, as readelf tells them."""
    out = subprocess.run(["readelf", "-SW", path], capture_output=True, text=True, check=True).stdout
    found = {}
    for line in out.splitlines():
        words = line.replace("[ ", "[").split()
        if len(words) > 6 and words[0].startswith("[") and words[1].startswith("."):
            found[words[1]] = (int(words[4], 16), int(words[4], 16) + int(words[5], 16))
    return found


def covered(place: tuple[int, int], ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(start <= place[0] and place[1] <= end for start, end in ranges)


def test_a_program_says_its_interpreter_its_libraries_and_where_they_are(built: Path) -> None:
    found = parse((built / "main").read_bytes())
    assert found is not None
    assert found.interpreter.startswith(b"/lib")
    assert found.needed == (b"libx.so", b"libc.so.6")
    assert (found.rpath, found.runpath) == ((), (b"$ORIGIN/../lib", b"/opt/x"))


def test_what_the_loader_reads_is_told_without_sections(built: Path) -> None:
    data = bytearray((built / "libx.so").read_bytes())
    named = sections(built / "libx.so")
    data[40:48] = bytes(8)  # where the sections are
    found = parse(bytes(data))
    assert found is not None
    for name in (".dynsym", ".dynstr", ".gnu.hash", ".rela.dyn"):
        assert covered(named[name], found.tables), name
    for name in (".data.rel.ro", ".init_array", ".dynamic"):
        if name in named:
            assert covered(named[name], found.data), name
    assert covered(named[".text"], found.code)
    assert not covered(named[".text"], found.tables)
    assert found.end <= len(data)


def test_constructors_are_found_where_their_code_is(built: Path) -> None:
    found = parse((built / "libx.so").read_bytes())
    assert found is not None
    symbols = subprocess.run(["nm", built / "libx.so"], capture_output=True, text=True, check=True).stdout.split("\n")
    places = {line.split()[2]: int(line.split()[0], 16) for line in symbols if len(line.split()) == 3}
    assert {places["first"], places["second"]} <= set(found.constructors)


def test_what_is_no_elf_file_is_none(built: Path) -> None:
    data = (built / "main").read_bytes()
    assert parse(b"") is parse(b"#!/bin/sh\n") is parse(b"\x7fELF") is parse(data[:100]) is None
    assert parse(data[:4] + b"\x01" + data[5:]) is None  # 32 bits
    assert parse(data[:54] + struct.pack("<H", 57) + data[56:]) is None


def test_mutated_files_are_read_within_their_bounds(built: Path) -> None:
    draw = random.Random(4)
    whole = (built / "libx.so").read_bytes()

    def read(offset: int, size: int) -> bytes:
        assert offset >= 0
        assert 0 <= size <= 64 << 20
        return bytes(data[offset : offset + size])

    parsed = 0
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 6)):
            at = draw.choice((draw.randrange(64, 700), draw.randrange(len(data) - 8)))
            data[at : at + 8] = draw.choice((b"\xff" * 8, bytes(8), struct.pack("<Q", 1 << draw.randrange(64))))
        found = elf.parse(read, len(data))
        if found is not None:
            parsed += 1
            for start, end in (*found.tables[1:], *found.code, *found.data):
                assert start >= 0
                assert start < 1 << 63
                assert end <= len(data) or end - start <= 0
    assert parsed > 300


def test_a_static_program_has_no_tables(tool: Path) -> None:
    found = parse(tool.read_bytes())
    assert found is not None
    assert (found.interpreter, found.needed, len(found.tables)) == (b"", (), 1)
    assert sum(end - start for start, end in found.code) > 10_000
