"""What starts read, as files."""

from __future__ import annotations

import os
from pathlib import Path

from lazyfs import learned

A, B = b"a" * 32, b"b" * 32
RUNS: list[learned.Run] = [(A, 0, 8192), (B, 4096, 100), (A, 1 << 20, 4096)]


def silent(text: str) -> None:
    raise AssertionError(text)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = learned.path_of(tmp_path, "12" * 32, ("a", "b"))
    assert learned.load(path, silent) == []
    learned.save(path, RUNS)
    assert learned.load(path, silent) == RUNS
    assert os.stat(path).st_mode & 0o077 == 0
    assert learned.runs_of(learned.rows_of(RUNS)) == RUNS


def test_commands_and_images_have_files_of_their_own(tmp_path: Path) -> None:
    images, commands = ("12" * 32, "34" * 32), (("a", "b"), ("ab",), ())
    assert len({learned.path_of(tmp_path, image, command) for image in images for command in commands}) == 6


def test_a_damaged_file_is_removed_with_a_line(tmp_path: Path) -> None:
    path = learned.path_of(tmp_path, "12" * 32, ())
    learned.save(path, RUNS)
    good = Path(path).read_bytes()
    bad = [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(len(good))]
    bad += [good[:size] for size in range(len(good))] + [good + b"\0", good + good, bytes(len(good))]
    for data in bad:
        Path(path).write_bytes(data)
        notes: list[str] = []
        assert learned.load(path, notes.append) == []
        assert len(notes) == 1
        assert "damaged" in notes[0]
        assert not os.path.exists(path)


def test_later_starts_add_what_is_new(tmp_path: Path) -> None:
    read: list[learned.Run] = [(A, 4096, 4096), (B, 0, 4096), (A, 0, 12288), (B, 0, 4096), (B, 0, 0)]
    assert learned.joined(RUNS, read) == [*RUNS, (B, 0, 4096), (A, 0, 12288)]
    assert learned.joined(RUNS, RUNS) == RUNS
    assert learned.joined([], []) == []


def test_there_is_a_bound_to_what_is_learned() -> None:
    many: list[learned.Run] = [(A, 4096 * number, 4096) for number in range(learned.RUNS_MAX + 10)]
    assert learned.joined([], many) == many[: learned.RUNS_MAX]
    huge: list[learned.Run] = [(A, 0, learned.BYTES_MAX + 1), (B, 0, 4096)]
    assert learned.joined([], huge) == huge[1:]


def test_an_image_has_so_many_commands_and_the_oldest_goes(tmp_path: Path) -> None:
    paths = [learned.path_of(tmp_path, "12" * 32, (str(number),)) for number in range(learned.COMMANDS_MAX + 3)]
    for when, path in enumerate(paths):
        learned.save(path, RUNS)
        os.utime(path, (when, when))
    assert [os.path.exists(path) for path in paths] == [False] * 3 + [True] * learned.COMMANDS_MAX


def test_a_file_that_goes_while_another_is_saved_is_no_error(tmp_path: Path) -> None:
    path = learned.path_of(tmp_path, "12" * 32, ())
    os.makedirs(os.path.dirname(path))
    os.symlink("gone", f"{path}.1")  # listed, and not there
    learned.save(path, RUNS)
    assert learned.load(path, silent) == RUNS


def test_images_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    assert learned.forget(tmp_path, ()) == 0
    kept, gone = (learned.path_of(tmp_path, name * 32, ()) for name in ("12", "34"))
    for path in (kept, gone):
        learned.save(path, RUNS)
    assert learned.forget(tmp_path, ("12" * 32,)) == 1
    assert os.path.exists(kept)
    assert not os.path.exists(os.path.dirname(gone))
