"""kill -9 of `build` and `import` at random points: what is left is whole, and nothing is left running.

ONESEC_KILLS sets the number of kills (50), ONESEC_SEED the seed, which is printed.
"""

from __future__ import annotations

import io
import os
import random
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import seeds
from tests.support.background import background_processes
from tests.support.command import Onesec
from tests.support.oci import oci_layout
from tests.support.shell import shell_image
from tests.support.waiting import eventually

KILLS = int(os.environ.get("ONESEC_KILLS", "50"))
WHOLE_CHECK_EVERY = 10

IMAGE = """
from onesec import Image
image = Image.from_oci({source!r}).copy_local({files!r}, "/app")
image = image.run("cat /app/0 > /srv/read && rm /app/1", "id > /etc/id")
"""


def archive(chance: random.Random) -> bytes:
    """A layer that was never seen before."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as made:
        for number in range(40):
            data = chance.randbytes(chance.choice((10, 3_000, 70_000, 150_000)))
            info = tarfile.TarInfo(f"data/{number}")
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return target.getvalue()


class Place:
    def __init__(self, directory: Path, chance: random.Random) -> None:
        self.directory = directory
        self.chance = chance
        self.marker = f"ONESEC_MARKER={directory}"
        self.onesec = Onesec(directory, {"ONESEC_MARKER": str(directory)})
        self.files = directory / "files"
        self.files.mkdir()
        self.image = directory / "image.py"
        self.image.write_text(IMAGE.format(source=shell_image(directory), files=str(self.files)))

    def build(self) -> list[str]:
        """The words of a build that has everything to do but its base."""
        for number in range(30):
            (self.files / str(number)).write_bytes(self.chance.randbytes(self.chance.choice((5, 20_000, 90_000))))
        return ["build", str(self.image), "-t", "built"]

    def import_(self) -> list[str]:
        oci_layout(self.directory / "foreign", archive(self.chance), {})
        return ["import", f"oci:{self.directory / 'foreign'}:t", "-t", "imported"]

    def processes(self) -> list[str]:
        """Everything alive that descends from a command of ours: they have its environment, or a log of its."""
        found = [f"{number} {name}" for number, name in background_processes(self.onesec.run_dir).items()]
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                try:
                    if self.marker.encode() in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                        found.append(f"{name} {Path('/proc', name, 'cmdline').read_bytes()[:200]!r}")
                except OSError:
                    continue
        return found

    def wait_until_nothing_runs(self) -> None:
        """A server whose client died before its first word waits for object_process.FIRST_CLIENT_S."""
        eventually(lambda: self.processes() == [], f"something of {self.directory} runs on", every=0.005)

    def check(self) -> None:
        self.wait_until_nothing_runs()
        fsck = self.onesec.here("fsck")
        assert fsck.status == 0, fsck
        assert self.onesec.here("images").status == 0
        assert str(self.directory) not in Path("/proc/self/mountinfo").read_text()
        root = self.onesec.root
        assert list((root / "leases").iterdir()) == []
        assert [path.name for path in (root / "images/blobs").iterdir()] == ["sha256"]
        assert [path.name for path in (root / "images").iterdir() if "tmp" in path.name] == []
        assert [path.name for path in (root / "cache/index").iterdir() if "tmp" in path.name] == []

    def check_whole(self) -> None:
        """The next calls do what they would have done, and clear away what a container of a dead client left."""
        for words in (self.build(), self.import_()):
            done = self.onesec(*words)
            assert done.status == 0, done
        self.wait_until_nothing_runs()
        for name in ("built", "imported"):
            assert self.onesec.here("verify", name, "--deep").status == 0
        left = [*(self.onesec.root / "scratch").iterdir(), *(self.onesec.run_dir / "containers").iterdir()]
        assert left == []
        assert self.onesec.here("gc").status == 0


@pytest.fixture
def chance() -> random.Random:
    return random.Random(seeds.draw())


@pytest.mark.timeout(600 + 10 * KILLS)
def test_a_build_or_import_killed_at_any_point_leaves_all_whole_and_nothing_running(
    real_machine: None, tmp_path: Path, chance: random.Random
) -> None:
    place = Place(tmp_path, chance)
    kinds: dict[Callable[[], list[str]], float] = {place.build: 0.0, place.import_: 0.0}
    assert place.onesec(*place.build()).status == 0  # the base is converted and the object server's code is warm
    for kind in kinds:
        words, began = kind(), time.monotonic()
        assert place.onesec(*words).status == 0
        kinds[kind] = time.monotonic() - began
    killed = tried = 0
    while killed < KILLS:
        kind = (place.build, place.import_)[tried % 2]
        with place.onesec.start(*kind()) as process:
            # spread over the whole run, and a little beyond its end: some survive, and that must be fine too
            time.sleep(chance.uniform(0, 1.02 * kinds[kind]))
            if tried // 2 % 2:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()  # its children have to notice
            survived = process.wait() != -signal.SIGKILL
        killed += not survived
        tried += 1
        # How long a run takes changes with what else the machine does: few should survive, but not none.
        kinds[kind] *= 0.9 if survived else 1.01
        place.check()
        if tried % WHOLE_CHECK_EVERY == 0:
            place.check_whole()
