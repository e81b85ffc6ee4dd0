"""Steps of a build on the real kernel: where they write, what they say and what they leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from lazyfs.index.layer import decode_layer
from registry.decoded import read_decoded
from registry.layout import Layout
from registry.model import LAYER
from registry.reference import Reference
from tests.support.command import Onesec, Said
from tests.support.shell import shell_image
from tests.support.waiting import PATIENCE_S, eventually


def build(onesec: Onesec, tail: str, *words: str, base: str | None = None) -> Said:
    source = f"Image.from_oci({shell_image(onesec.directory)!r})" if base is None else base
    onesec.directory.mkdir(exist_ok=True)
    path = onesec.directory / "image.py"
    path.write_text(f"from onesec import Image\nimage = {source}{tail}\n")
    return onesec("build", path, "-t", "app", *words, timeout=800)


def last_layer(onesec: Onesec) -> set[bytes]:
    layout = Layout.open(onesec.root)
    layer = layout.resolve(Reference.parse("app")).manifest.each(LAYER)[-1]
    return {path for path, _ in decode_layer(read_decoded(layout, layer)).walk()} - {b""}


def test_commands_of_one_step_share_a_layer_and_their_output_is_no_data(tmp_path: Path, real_machine: None) -> None:
    onesec = Onesec(tmp_path)
    said = build(onesec, ".run('echo first > /srv/a; echo loud', 'cat /srv/a; cat > /srv/b', 'rm /srv/b')")
    assert said.status == 0, said.err
    assert "loud\nfirst\n" in said.err
    assert said.out.splitlines() == ["app:latest: 2 steps", said.out.splitlines()[-1]]
    assert last_layer(onesec) == {b"srv", b"srv/a"}


def test_a_step_that_changes_nothing_is_an_empty_layer(tmp_path: Path, real_machine: None) -> None:
    onesec = Onesec(tmp_path)
    said = build(onesec, ".run('true > /tmp/x; true > /etc/x; rm /tmp/x /etc/x; ls /run/onesec')")
    assert said.status == 0, said.err
    assert last_layer(onesec) == set()


def test_a_step_has_the_same_layer_each_time(tmp_path: Path, real_machine: None) -> None:
    onesec = Onesec(tmp_path)
    base = f"Image.from_oci({shell_image(tmp_path)!r})"
    tail = ".run('mkdir -p /srv/a/b; date > /dev/null; id > /srv/a/b/c; rm /etc/group; ln -s a /srv/d')"
    first = build(onesec, tail, base=base)
    second = build(Onesec(tmp_path / "other"), tail, base=base)
    assert (first.status, second.status) == (0, 0), second.err
    assert first.out.splitlines()[-1] == second.out.splitlines()[-1]


def test_a_failing_command_is_named_and_its_layer_is_gone(tmp_path: Path, real_machine: None) -> None:
    onesec = Onesec(tmp_path)
    said = build(onesec, ".run('true', 'echo left > /srv/a; exit 7', 'true')")
    assert said.status == 1
    assert "exit 7" in said.error
    assert "7" in said.error
    assert [*(onesec.root / "scratch").iterdir(), *(onesec.run_dir / "containers").iterdir()] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_step_that_would_take_long_ends_at_once_with_the_build(
    number: signal.Signals, tmp_path: Path, real_machine: None
) -> None:
    """A Ctrl-C that only the build gets: the command is in a process group of its own."""
    onesec = Onesec(tmp_path)
    marker = f"1{os.getpid()}"  # seconds: far more than anybody waits here
    source = shell_image(tmp_path)
    (tmp_path / "image.py").write_text(
        f"from onesec import Image\nimage = Image.from_oci({source!r}).run('echo began; sleep {marker}', 'id')\n"
    )
    words = onesec.words("build", tmp_path / "image.py", "-t", "app")
    with subprocess.Popen(words, env=onesec.surroundings, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        while b"began" not in (line := process.stderr.readline()) or b"echo" in line:
            assert line
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGTERM)
    assert b"Traceback" not in err
    eventually(lambda: not processes_with(marker))
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert onesec.here("fsck").status == 0
    if number == signal.SIGINT:
        assert [*(onesec.root / "scratch").iterdir(), *(onesec.run_dir / "containers").iterdir()] == []
    assert list((onesec.root / "leases").iterdir()) == []


def processes_with(word: str) -> list[str]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if word.encode() in Path("/proc", name, "cmdline").read_bytes().split(b"\0"):
                found.append(name)
    return found


SCRATCH = """
set -e
mkdir {place}/lower {place}/upper {place}/work {place}/merged
mount -t overlay overlay -o lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work {place}/merged
exec "$@"
"""


def test_scratch_files_in_memory_are_said_once(tmp_path: Path, real_machine: None) -> None:
    """The root lies on an overlay, which cannot be the upper of another."""
    onesec = Onesec(tmp_path / "merged")
    inner = (
        "import sys, pathlib; from tests.support.command import Onesec; from tests.support.shell import shell_image;"
        "place = pathlib.Path(sys.argv[1]); onesec = Onesec(place); source = shell_image(place);"
        "assert onesec('import', source, '-t', 'app').status == 0;"
        "said = onesec('run', 'app', 'sh', '-c', 'echo x > /srv/x; cat /srv/x');"
        "text = f'from onesec import Image\\nimage = Image.from_oci({source!r}).run(\"id > /srv/id\")';"
        "(place / 'image.py').write_text(text);"
        "built = onesec('build', place / 'image.py', '-t', 'app');"
        "print(said.status, built.status, said.out.strip()); print(said.err); print('---'); print(built.err)"
    )
    call = ["unshare", "--mount", "sh", "-c", SCRATCH.format(place=tmp_path), "sh", sys.executable, "-c", inner]
    done = subprocess.run(
        [*call, str(onesec.directory)], env=onesec.surroundings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, _, rest = done.stdout.partition("\n")
    assert first == "0 0 x"
    ran, _, built = rest.partition("---")
    for text in (ran, built):
        assert text.count("they are kept in memory") == 1, text
        assert str(onesec.root) in text


def test_the_deadline_of_reads_is_a_setting(tmp_path: Path, real_machine: None) -> None:
    (tmp_path / "onesec.toml").write_text("[run]\nlinger = 0\ndeadline = 7\n")
    onesec = Onesec(tmp_path, {"ONESEC_CONFIG": str(tmp_path / "onesec.toml")})
    assert onesec.here("import", shell_image(tmp_path), "-t", "app").status == 0
    assert onesec("run", "app", "true").status == 0
    (domain,) = (onesec.run_dir / "domains").iterdir()
    assert "reads wait 7 s at most" in (domain / "log").read_text()


def test_run_without_an_image_asks_for_that_alone(tmp_path: Path) -> None:
    said = Onesec(tmp_path).here("run")
    assert (said.status, said.error) == (125, "the following arguments are required: REF")


@pytest.mark.timeout(900)
def test_apt_works_in_a_step_and_leaves_neither_sources_nor_lists(tmp_path: Path, real_machine: None) -> None:
    if not os.environ.get("CI") and not os.environ.get("ONESEC_REQUIRE_ALL"):
        pytest.skip("builds a Debian from the network: only with CI or ONESEC_REQUIRE_ALL set")
    onesec = Onesec(tmp_path)
    said = build(
        onesec,
        ".run('apt-get update -q && apt-get install -y -q hello && hello')",
        base="Image.debian_slim(python_version='3.11')",
    )
    assert said.status == 0, said.err
    assert "Hello, world!" in said.err
    left = last_layer(onesec)
    assert b"usr/bin/hello" in left
    wrong = (b"var/lib/apt/lists/", b"var/cache/apt/archives/h", b"var/log/", b"etc/apt", b"run", b"etc/ssl")
    assert [path for path in left if path.startswith(wrong) and not path.endswith((b"partial", b"auxfiles"))] == []
    assert onesec("run", "app", "hello").status == 0
    assert onesec("run", "app", "sh", "-c", "! grep -q '^deb' /etc/apt/sources.list").status == 0
