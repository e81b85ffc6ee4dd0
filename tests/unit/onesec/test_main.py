from __future__ import annotations

import argparse
import errno
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import onesec
from cext.errors import MissingError, UsageError
from onesec.cli import main as frame
from onesec.config import Config
from tests.support.waiting import PATIENCE_S

ROOT = Path(__file__).parents[3]


def command(monkeypatch: pytest.MonkeyPatch, run: Callable[..., int], **extra: object) -> None:
    """Puts a command named `images` in the place of the real one."""
    module = types.ModuleType("onesec.cli.images")
    module.__dict__.update(run=run, add_arguments=lambda parser: parser.add_argument("word", nargs="?"), **extra)
    monkeypatch.setitem(sys.modules, "onesec.cli.images", module)


@pytest.mark.parametrize("words", [["--root", "/r", "--json", "images", "x"], ["images", "x", "--json", "--root=/r"]])
def test_global_options_stand_before_or_after_the_command(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    seen: list[tuple[str, Config]] = []

    def run(arguments: argparse.Namespace, config: Config) -> int:
        seen.append((arguments.word, config))
        return 0

    command(monkeypatch, run)
    assert frame.main(words) == 0
    ((word, config),) = seen
    assert (word, str(config.root), config.json) == ("x", "/r", True)


@pytest.mark.parametrize(
    ("error", "status", "lines"),
    [
        (
            MissingError("app: no such image", hint="onesec images"),
            1,
            ["onesec: app: no such image", "hint: onesec images"],
        ),
        (UsageError("bad"), 2, ["onesec: bad"]),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/f"), 1, ["onesec: /f: no space left on device"]),
        (OSError(errno.EIO, "read of a pack"), 1, ["onesec: read of a pack: input/output error"]),
        (MemoryError(), 1, ["onesec: out of memory"]),
        (MissingError("a\x1b[2Jb\nc"), 1, ["onesec: a\\x1b[2Jb\\nc"]),
        (KeyboardInterrupt(), 130, []),
    ],
)
def test_what_a_command_raises_is_a_line_and_a_status(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    lines: list[str],
) -> None:
    def run(*_: object) -> int:
        raise error

    command(monkeypatch, run)
    assert frame.main(["images"]) == status
    assert capsys.readouterr().err.splitlines() == lines


def test_a_command_may_have_a_status_of_its_own_for_our_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> int:
        raise MissingError("x")

    command(monkeypatch, run, EXIT_FAILED=125)
    assert frame.main(["images"]) == 125
    assert frame.main(["images", "--nope"]) == 125


@pytest.mark.parametrize("words", [[], ["nope"], ["--nope"], ["--root"], ["images", "--nope"]])
def test_wrong_words_are_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    command(monkeypatch, lambda *_: 0)
    assert frame.main(words) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("onesec: ")
    assert second.startswith("hint: ")


def onesec_command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onesec", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=PATIENCE_S,
    )


def test_version_and_help_work_from_the_shell() -> None:
    assert onesec_command("--version").stdout == f"onesec {onesec.__version__}\n"
    listing = onesec_command("--help").stdout
    assert all(f"  {name} " in listing for name in frame.COMMANDS)
    assert onesec_command("run", "--help").returncode == 0


def test_a_closed_pipe_ends_quietly() -> None:
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from onesec.cli import main as m; import types\n" + (
        "x = types.ModuleType('x'); x.add_arguments = lambda p: None\n"
        "def run(a, c):\n    print('y' * 1000000); return 0\n"
        "x.run = run; sys.modules['onesec.cli.images'] = x\nsys.exit(m.main(['images']))"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_descriptors_that_the_caller_closed_are_dev_null() -> None:
    """Else the next file that is opened, of ours or of the host, would be the container's stdin."""
    script = "import os; from onesec.cli import main as m; m.main = lambda: os.write(9, os.fsencode(repr([\n"
    script += "    os.readlink(f'/proc/self/fd/{n}') for n in range(3)]))) and 7; m.entry()"
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" 9>&1 0<&- 1>&- 2>&-', "sh", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stdout) == (7, repr(["/dev/null"] * 3))
