"""Which processes count as servers, and what of them counts; on a /proc that the test writes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.macro.servers import Share, serving, share


def process(proc: Path, pid: int, name: str, *words: str, rollup: str = "") -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "comm").write_text(f"{name}\n")
    (proc / str(pid) / "cmdline").write_text("\0".join([*words, ""]))
    (proc / str(pid) / "smaps_rollup").write_text(f"55d0-7ffe ---p 00000000 00:00 0 [rollup]\n{rollup}")


def test_servers_are_those_with_our_run_directory_and_one_of_our_names(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    process(tmp_path, 7, "onesec-objects", "python", "--run-dir", "/run/a", "run")
    process(tmp_path, 30, "onesec-renewer", "python", "--run-dir", "/run/a", "run")
    process(tmp_path, 31, "onesec-objects", "python", "--run-dir", "/run/ab", "run")  # another place
    process(tmp_path, 32, "python", "python", "--run-dir", "/run/a", "run")  # a client
    assert serving("/run/a", proc=tmp_path) == [7, 30]


def test_pages_of_files_are_not_a_servers_own(tmp_path: Path) -> None:
    rollup = "Rss: 900 kB\nPss: 100 kB\nPss_Anon: 60 kB\nPss_File: 30 kB\nPss_Shmem: 10 kB\n"
    process(tmp_path, 7, "onesec-objects", rollup=rollup)
    assert share(7, proc=tmp_path) == Share(100 << 10, 70 << 10)
    assert share(8, proc=tmp_path) == Share()
    assert Share(1, 2) + Share(3, 4) == Share(4, 6)
