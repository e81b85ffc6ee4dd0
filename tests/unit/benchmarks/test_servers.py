"""Which processes count as servers, and what of them counts: on a /proc that the test writes, and of a real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.macro.servers import Peak, Share, serving, share, total

_SERVER = """
import sys, cext
cext.set_process_name("onesec-test")
held = bytearray(b"x") * (40 << 20)
print("there", flush=True)
sys.stdin.read()
"""


def process(proc: Path, pid: int, name: str, *words: str, log: str = "/dev/null", rollup: str = "") -> None:
    (proc / str(pid) / "fd").mkdir(parents=True)
    (proc / str(pid) / "fd/2").symlink_to(log)
    (proc / str(pid) / "comm").write_text(f"{name}\n")
    (proc / str(pid) / "cmdline").write_text("\0".join([*words, ""]))
    (proc / str(pid) / "smaps_rollup").write_text(f"55d0-7ffe ---p 00000000 00:00 0 [rollup]\n{rollup}")


def test_servers_are_those_with_our_run_directory_and_one_of_our_names(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    process(tmp_path, 7, "onesec-objects", "onesec-objects", log="/run/a/domains/0/log")
    process(tmp_path, 30, "onesec-prefill", "python", "--run-dir", "/run/a", "run")
    process(tmp_path, 31, "onesec-objects", "onesec-objects", log="/run/ab/domains/0/log")  # another place
    process(tmp_path, 32, "python", "python", "--run-dir", "/run/a", "run")  # a client
    assert serving("/run/a", proc=tmp_path) == [7, 30]


def test_pages_of_files_are_not_a_servers_own(tmp_path: Path) -> None:
    rollup = "Rss: 900 kB\nPss: 100 kB\nPss_Anon: 60 kB\nPss_File: 30 kB\nPss_Shmem: 10 kB\n"
    process(tmp_path, 7, "onesec-objects", rollup=rollup)
    assert share(7, proc=tmp_path) == Share(100 << 10, 70 << 10)
    assert share(8, proc=tmp_path) == Share()
    assert Share(1, 2) + Share(3, 4) == Share(4, 6)


def test_a_real_server_is_found_and_its_peak_stays_when_it_has_gone(tmp_path: Path) -> None:
    call = [sys.executable, "-c", _SERVER, "--run-dir", str(tmp_path)]
    process = subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"there\n"
    with Peak(tmp_path) as watched:
        assert serving(tmp_path) == [process.pid]
        assert total([process.pid]).own > 40 << 20
    process.communicate()
    assert watched.most.own > 40 << 20
    assert watched.most.whole >= watched.most.own
    assert serving(tmp_path) == []
