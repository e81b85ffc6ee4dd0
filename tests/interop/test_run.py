"""Containers by the real runtime on the real overlay: status, streams, signals, options, what is left."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.plain import ROOT, Runner, environment
from tests.support.trees import PlainImage, make_image
from tests.support.waiting import PATIENCE_S, eventually


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, tool: Path) -> PlainImage:
    return make_image(tmp_path_factory.mktemp("image"), tool, links={"etc/resolv.conf": "../run/resolved/stub.conf"})


@pytest.fixture
def run(tmp_path: Path, image: PlainImage) -> Runner:
    return Runner(tmp_path, image)


def lines(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    assert done.stderr == b"", done.stderr
    return done.stdout.decode().splitlines()


def test_the_status_of_the_container_is_the_status_of_run(run: Runner) -> None:
    assert [run("/bin/tool", "exit", str(status)).returncode for status in (0, 7, 255)] == [0, 7, 255]
    assert run.left() == []


def test_a_program_that_is_not_there_is_127_and_one_that_cannot_run_is_126(run: Runner) -> None:
    missing, refused, directory = run("/bin/nope"), run("/bin/noexec"), run("/bin")
    assert (missing.returncode, missing.stderr) == (127, b"onesec: /bin/nope: not found in the image\n")
    assert refused.returncode == directory.returncode == 126
    assert run("nope").returncode == 127
    assert run.left() == []


def test_a_name_without_slash_is_looked_for_in_the_path_of_the_container(run: Runner) -> None:
    assert run("tool", "exit", "3").returncode == 3
    assert run("tool", "exit", "3", options=["-e", "PATH=/nowhere"]).returncode == 127


def test_no_command_at_all_is_said_before_anything_is_made(run: Runner) -> None:
    done = run()
    assert done.returncode == 125
    assert done.stderr.startswith(b"onesec: command: got none")
    assert not (run.directory / "run").exists()


def test_entrypoint_and_command_of_the_image_combine_with_words_of_the_call(run: Runner) -> None:
    config = {"Entrypoint": ["/bin/tool", "words", "a"], "Cmd": ["b"]}
    assert lines(run(config=config)) == ["a", "b"]
    assert lines(run("c", "--", "-d", config=config)) == ["a", "c", "--", "-d"]


def test_stdin_and_stdout_are_pipes_of_any_length(run: Runner) -> None:
    data = os.urandom(300_000)
    done = run("/bin/tool", "cat", stdin=data)
    assert (done.returncode, done.stdout) == (0, data)


def test_environment_comes_from_defaults_the_image_and_the_call_in_that_order(run: Runner) -> None:
    config = {"Env": ["A=image", "B=image", "EMPTY="]}
    found = lines(run("/bin/tool", "env", options=["-e", "B=call", "-e", "C=x=y"], config=config))
    assert {"A=image", "B=call", "C=x=y", "EMPTY=", "HOME=/root"} <= set(found)
    assert not any(item.startswith("PYTHONPATH=") for item in found)


def test_volumes_are_bound_and_ro_ones_refuse_writes(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "f").write_text("from the host")
    source = str(tmp_path / "host")
    assert run("/bin/tool", "cat", "/deep/er/f", options=["-v", f"{source}:/deep/er"]).stdout == b"from the host"
    assert run("/bin/tool", "write", "/m/g", "x", options=["-v", f"{source}:/m"]).returncode == 0
    assert (tmp_path / "host" / "g").read_text() == "x"
    refused = run("/bin/tool", "write", "/m/h", "x", options=["-v", f"{source}:/m:ro"])
    assert refused.returncode != 0
    assert b"Read-only file system" in refused.stderr
    one_file = run("/bin/tool", "cat", "/etc/one", options=["-v", f"{source}/f:/etc/one:ro"])
    assert one_file.stdout == b"from the host"
    missing = run("/bin/tool", "true", options=["-v", f"{source}/nope:/m"])
    assert (missing.returncode, b"no such file" in missing.stderr) == (125, True)


def test_working_directory_of_the_image_is_made_and_that_of_the_call_has_to_exist(run: Runner) -> None:
    assert lines(run("/bin/tool", "cwd", config={"WorkingDir": "/srv/app"})) == ["/srv/app"]
    assert lines(run("/bin/tool", "cwd", options=["-w", "/bin"], config={"WorkingDir": "/srv"})) == ["/bin"]
    assert run("/bin/tool", "cwd", options=["-w", "/nope"]).returncode == 125
    assert run("/bin/tool", "cwd", options=["-w", "/bin/tool"]).returncode == 125


def test_users_are_names_of_the_image_or_numbers(run: Runner) -> None:
    assert lines(run("/bin/tool", "id", options=["-u", "work"])) == ["1000:1001 1001 2000"]
    assert lines(run("/bin/tool", "id", config={"User": "work:extra"})) == ["1000:2000 2000"]
    assert lines(run("/bin/tool", "id", options=["-u", "7:8"], config={"User": "work"})) == ["7:8 8"]
    unknown = run("/bin/tool", "id", options=["-u", "nobody-here"])
    assert (unknown.returncode, unknown.stderr[:35]) == (125, b"onesec: user: got nobody-here, want")


def test_net_none_has_a_loopback_and_nothing_else(run: Runner) -> None:
    names = [
        line.split(":")[0].strip()
        for line in lines(run("/bin/tool", "cat", "/proc/net/dev", options=["--net", "none"]))[2:]
    ]
    assert names == ["lo"]
    assert lines(run("/bin/tool", "cat", "/etc/resolv.conf", options=["--net", "none"])) == []


def test_net_host_has_the_hosts_names_even_through_a_link_that_leads_nowhere(run: Runner) -> None:
    assert run("/bin/tool", "cat", "/etc/resolv.conf").stdout == Path("/etc/resolv.conf").read_bytes()
    assert Path("/etc/hosts").read_bytes() in run("/bin/tool", "cat", "/etc/hosts").stdout
    assert lines(run("/bin/tool", "cat", "/etc/hostname")) == [os.uname().nodename]


def test_the_container_has_three_descriptors(run: Runner) -> None:
    found = lines(run("/bin/tool", "list", "/proc/self/fd"))
    assert found == ["0", "1", "2", "3"]  # 3 is the listing's own


def test_what_a_container_writes_is_gone_with_it(run: Runner) -> None:
    assert run("/bin/tool", "write", "/etc/passwd", "x").returncode == 0
    assert b"x:0" in run("/bin/tool", "cat", "/etc/passwd").stdout
    assert run.left() == []


def test_scratch_can_be_memory(tmp_path: Path, image: PlainImage) -> None:
    run = Runner(tmp_path, image, {"scratch": "memory"})
    assert run("/bin/tool", "write", "/new", "x").returncode == 0
    assert run.left() == []


def test_runc_does_when_it_is_configured(tmp_path: Path, image: PlainImage) -> None:
    run = Runner(tmp_path, image, {"runtime": "runc"})
    assert run("/bin/tool", "exit", "9").returncode == 9
    assert run.left() == []


def test_a_runtime_that_is_not_installed_is_named(tmp_path: Path, image: PlainImage) -> None:
    done = Runner(tmp_path, image, {"runtime": "no-such-runtime"})("/bin/tool")
    assert (done.returncode, done.stderr) == (
        125,
        b"onesec: no-such-runtime: not installed\nhint: apt-get install crun\n",
    )


def ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n", process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_the_container_and_its_status_comes_back(run: Runner, number: signal.Signals) -> None:
    with run.start("/bin/tool", "trap") as process:
        ready(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err) == (40 + number, f"caught {number.value}\n".encode(), b"")
    assert run.left() == []


def test_the_third_sigterm_ends_a_container_that_ignores_them(run: Runner) -> None:
    with run.start("/bin/tool", "hang") as process:
        ready(process)
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 137
    assert run.left() == []


def processes_with(text: str) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                words = Path("/proc", name, "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if text.encode() in words:
                found.append(int(name))
    return found


def test_a_killed_client_leaves_no_process_and_the_next_run_removes_the_rest(run: Runner) -> None:
    marker = f"marker-{os.getpid()}-{time.monotonic_ns()}"
    with run.start("/bin/tool", "hang", marker) as process:
        ready(process)
        assert processes_with(marker)
        process.kill()
        process.communicate(timeout=PATIENCE_S)
    eventually(lambda: processes_with(marker) == [])
    assert len(run.left()) == 2
    assert run("/bin/tool", "true").returncode == 0
    assert run.left() == []


def test_a_running_container_is_not_swept_by_another(run: Runner) -> None:
    with run.start("/bin/tool", "trap") as process:
        ready(process)
        assert run("/bin/tool", "true").returncode == 0
        assert len(run.left()) == 2
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 40 + signal.SIGTERM
    assert run.left() == []


def test_directories_deeper_than_any_path_are_removed(run: Runner) -> None:
    assert run("/bin/tool", "mkdirs", "3000", options=["-w", "/tmp"]).returncode == 0
    assert run.left() == []


def read_until(master: int, wanted: bytes) -> bytes:
    output = b""
    deadline = time.monotonic() + PATIENCE_S
    while wanted not in output and time.monotonic() < deadline:
        if select.select([master], [], [], 0.2)[0]:
            output += os.read(master, 4096)
    assert wanted in output, output
    return output


def test_a_terminal_has_the_clients_size_follows_it_and_passes_keys_on(run: Runner) -> None:
    master, slave = pty.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
        before = termios.tcgetattr(slave)
        words = ["setsid", "--ctty", "--wait", *run.words(["-t"], ["/bin/tool", "ttys"], None)]
        with (
            subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, env=environment()) as process,
            ExitStack() as stack,
        ):
            stack.callback(process.kill)
            read_until(master, b"tty 111 33x77")
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 50, 0, 0))
            read_until(master, b"tty 111 20x50")
            os.write(master, b"\x03")  # in raw mode a byte; the container's own terminal makes SIGINT of it
            read_until(master, b"caught 2")
            assert process.wait(timeout=PATIENCE_S) == 42
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(slave)
        os.close(master)
    assert run.left() == []
