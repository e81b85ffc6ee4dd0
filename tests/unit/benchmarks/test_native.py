from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.macro import native


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    found = tmp_path / "sources"
    found.mkdir()
    (found / "small.c").write_text('#include "small.h"\nint main(void) { return CODE; }\n')
    (found / "small.h").write_text("#define CODE 0\n")
    return found


def test_a_program_is_compiled_once_and_again_when_a_source_changes(sources: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = native.program("small", "small.h", directory=cache, sources=sources)
    written = first.stat()
    assert native.program("small", "small.h", directory=cache, sources=sources) == first
    assert first.stat().st_ino == written.st_ino
    (sources / "small.h").write_text("#define CODE 1\n")
    assert native.program("small", "small.h", directory=cache, sources=sources) != first
    assert len(list(cache.iterdir())) == 2


def test_other_flags_are_another_program(sources: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert native.program("small", directory=cache, sources=sources) != native.program(
        "small", flags=["-static"], directory=cache, sources=sources
    )


def test_what_does_not_compile_is_said_in_a_line_and_leaves_nothing(sources: Path, tmp_path: Path) -> None:
    (sources / "small.c").write_text("int main(void) { int unused; return 0; }\n")
    with pytest.raises(native.CompilerError, match=r"small-.*unused") as caught:
        native.program("small", directory=tmp_path / "cache", sources=sources)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_cache_is_not_in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert native.cache_directory() == Path("/somewhere/onesec-bench")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert native.cache_directory() == Path("/home/me/.cache/onesec-bench")
