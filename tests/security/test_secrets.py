"""What is secret is in no byte that we write or say: not in layers, logs, keys, arguments or errors.

8.5 % of 337,171 public images had secrets in them (ASIACCS'23). Twenty canaries are planted where builders keep such
things; every byte that builds leave, decompressed, is searched for each of them, as it is and encoded.
"""

from __future__ import annotations

import base64
import os
import random
import stat
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import zstandard

from tests.support.background import background_processes
from tests.support.command import Onesec, Said
from tests.support.shell import shell_image

NAMES = (
    "secret file", "second secret file", "secret nobody asked for", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "HF_TOKEN",
    "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_PROXY", "https_proxy", "netrc", "pip.conf",
    "docker config", "auth.json", "git-credentials", "ssh key", "history", "ignored file", "environment of a step",
)  # fmt: skip


def planted() -> dict[str, str]:
    chance = random.SystemRandom()
    return {name: f"CANARY{number:02}{chance.getrandbits(80):020x}" for number, name in enumerate(NAMES)}


def forms(canary: str) -> dict[str, bytes]:
    """What it may look like: raw, base64 at each of the three alignments, hex, with percent signs, backwards."""
    raw = canary.encode()
    found = {"raw": raw, "hex": raw.hex().encode(), "backwards": raw[::-1], "wide": canary.encode("utf-16-le")}
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + raw + bytes(2))
        found[f"base64+{shift}"] = encoded[4 if shift else 0 : (shift + len(raw)) // 3 * 4]
    found["quoted"] = urllib.parse.quote("".join(f"%{byte:02X}" for byte in raw), safe="%").encode()
    return found


@dataclass(slots=True)
class Seen:
    """Everything that was there to be read at some time. what -> bytes."""

    pieces: dict[str, bytes] = field(default_factory=dict)

    def add(self, what: str, data: bytes) -> None:
        self.pieces[f"{what} {len(self.pieces)}"] = data
        for number, plain in enumerate(decompressed(data)):
            self.pieces[f"{what} decompressed {number}"] = plain

    def tree(self, root: Path) -> None:
        """Names, contents, link targets and attributes of everything there is below."""
        for directory, directories, files in os.walk(root):
            for name in (*directories, *files):
                path = Path(directory, name)
                self.pieces[f"name {path}"] = str(path.relative_to(root)).encode()
                with suppress(OSError):
                    mode = path.lstat().st_mode
                    if stat.S_ISREG(mode):
                        self.add(str(path), path.read_bytes())
                    elif stat.S_ISLNK(mode):
                        self.pieces[f"link {path}"] = os.fsencode(os.readlink(path))

    def find(self, canaries: Mapping[str, str]) -> list[str]:
        return [
            f"{name} ({form}) in {what}"
            for name, canary in canaries.items()
            for form, needle in forms(canary).items()
            for what, data in self.pieces.items()
            if needle in data
        ]


def decompressed(data: bytes) -> Iterator[bytes]:
    """Every zstd frame in it, wherever it starts."""
    at = data.find(b"\x28\xb5\x2f\xfd")
    while at >= 0:
        with suppress(zstandard.ZstdError):
            yield zstandard.ZstdDecompressor().decompressobj().decompress(data[at:])
        at = data.find(b"\x28\xb5\x2f\xfd", at + 1)


class Watcher:
    """Looks, as often as it can, at what anybody can see of the processes and at what is in the run directory."""

    def __init__(self, onesec: Onesec, seen: Seen, marker: bytes) -> None:
        self._onesec, self._seen, self._marker = onesec, seen, marker
        self._stop = threading.Event()
        self._files: set[tuple[str, int]] = set()
        self.processes: set[bytes] = set()

    def _family(self) -> set[int]:
        """The commands of this test, which have the marker, what they left running, and all that descends from them."""
        parents: dict[int, int] = {}
        found = set(background_processes(self._onesec.run_dir))
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                parents[int(name)] = int(Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1])
                if self._marker in Path("/proc", name, "environ").read_bytes():
                    found.add(int(name))
        while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
            found |= more
        return found

    def _look(self) -> None:
        for pid in self._family():
            with suppress(OSError):
                for file in ("cmdline", "comm"):
                    data = Path("/proc", str(pid), file).read_bytes()
                    self.processes.add(data)
                    self._seen.pieces[f"{file} of a process: {data[:80]!r}"] = data
        for place in (self._onesec.run_dir, self._onesec.root / "scratch"):
            for directory, _, files in os.walk(place):
                for name in files:
                    path = Path(directory, name)
                    with suppress(OSError):
                        found = path.lstat()
                        key = (str(path), found.st_size)
                        if stat.S_ISREG(found.st_mode) and key not in self._files:
                            self._files.add(key)
                            self._seen.add(f"while it ran: {path}", path.read_bytes())

    def _run(self) -> None:
        while not self._stop.is_set():
            self._look()
            time.sleep(0.002)

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
            self._stop.clear()


PYTHON = {"usr/bin/python3": b"none", "usr/bin/python3.11": b"none"}

IMAGE = """
from onesec import Image
base = Image.from_oci({source!r}).copy_local({files!r}, "/app", ignore=[".env", "id_*"])
image = base.run(
    "test -s /run/secrets/one && test -s /run/secrets/two && ! test -e /run/secrets/three",
    "cat /run/secrets/one > /dev/null; sleep 0.1; set > /dev/null; id > /etc/id",
    secrets=["one", "two"],
).env(PUBLIC="yes")
failing = base.run("cat /run/secrets/one > /dev/null; exit 3", secrets=["one"])
unsolved = base.pip_install("no-such-thing-anywhere==1.0")
missing = base.run("true", secrets=["never-given"])
broken = [][1]
"""


@dataclass(slots=True)
class Scene:
    onesec: Onesec
    seen: Seen
    watcher: Watcher
    image: Path
    secrets: list[str]

    def __call__(self, *words: str | Path) -> Said:
        with self.watcher.watching():
            said = self.onesec(*words)
        self.seen.add(f"stdout of {words}", said.out.encode())
        self.seen.add(f"stderr of {words}", said.err.encode())
        return said

    def build(self, name: str, *more: str) -> Said:
        return self("build", f"{self.image}:{name}", *self.secrets, *more)


@pytest.fixture
def canaries() -> dict[str, str]:
    return planted()


@pytest.fixture
def scene(tmp_path: Path, canaries: dict[str, str], real_machine: None) -> Scene:
    home = tmp_path / "home"
    files = {
        ".netrc": f"machine 127.0.0.1 login me password {canaries['netrc']}\n",
        ".config/pip/pip.conf": f"[global]\ntrusted-host = x\n# {canaries['pip.conf']}\n",
        ".docker/config.json": f'{{"auths":{{"x":{{"auth":"{canaries["docker config"]}"}}}}}}',
        ".config/containers/auth.json": f'{{"auths":{{"x":{{"auth":"{canaries["auth.json"]}"}}}}}}',
        ".git-credentials": f"https://me:{canaries['git-credentials']}@example.com\n",
        ".ssh/id_ed25519": f"-----BEGIN OPENSSH PRIVATE KEY-----\n{canaries['ssh key']}\n",
        ".bash_history": f"export TOKEN={canaries['history']}\n",
    }
    for name, text in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
        (home / name).chmod(0o600)
    context = tmp_path / "files"
    context.mkdir()
    (context / "app.py").write_text("print('hello')\n")
    (context / ".env").write_text(f"TOKEN={canaries['ignored file']}\n")
    (context / "id_rsa").write_text(canaries["ignored file"])
    secrets = []
    for name, canary in (("one", "secret file"), ("two", "second secret file"), ("three", "secret nobody asked for")):
        (tmp_path / name).write_text(canaries[canary])
        secrets += ["--secret", f"id={name},src={tmp_path / name}"]
    # a port where nobody listens
    nowhere = "127.0.0.1:9/simple"
    environment = {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "UV_CACHE_DIR": str(tmp_path / "uv"),
        "UV_HTTP_TIMEOUT": "1",
        "UV_HTTP_RETRIES": "0",
        "PIP_CONFIG_FILE": str(home / ".config/pip/pip.conf"),
        "PIP_INDEX_URL": f"http://me:{canaries['PIP_INDEX_URL']}@{nowhere}",
        "PIP_EXTRA_INDEX_URL": f"http://me:{canaries['PIP_EXTRA_INDEX_URL']}@{nowhere}2",
        "PIP_FIND_LINKS": f"http://me:{canaries['PIP_FIND_LINKS']}@127.0.0.1:9/links",
        "PIP_PROXY": f"http://me:{canaries['PIP_PROXY']}@127.0.0.1:9",
        "https_proxy": f"http://me:{canaries['https_proxy']}@127.0.0.1:9",
        "AWS_SECRET_ACCESS_KEY": canaries["AWS_SECRET_ACCESS_KEY"],
        "GITHUB_TOKEN": canaries["GITHUB_TOKEN"],
        "HF_TOKEN": canaries["HF_TOKEN"],
        "REGISTRY_AUTH_FILE": str(home / ".config/containers/auth.json"),
        "ONESEC_MARKER": str(tmp_path),
    }
    image = tmp_path / "image.py"
    text = IMAGE.format(source=shell_image(tmp_path, files=PYTHON), files=str(context))
    image.write_text(text.replace("broken = [][1]\n", ""))
    (tmp_path / "broken.py").write_text(f"TOKEN = open({str(tmp_path / 'one')!r}).read()\n" + text)
    onesec, seen = Onesec(tmp_path / "place", environment), Seen()
    return Scene(onesec, seen, Watcher(onesec, seen, f"ONESEC_MARKER={tmp_path}".encode()), image, secrets)


def test_no_canary_is_in_anything_that_builds_write_or_say(scene: Scene, canaries: dict[str, str]) -> None:
    assert scene.build("image", "--plan").status == 0
    assert scene.build("image", "--plan", "--json").status == 0
    built = scene.build("image", "-t", "app")
    assert built.status == 0, built.err
    assert scene.build("image", "-t", "app", "--no-cache", "--json").status == 0
    failed = scene.build("failing", "-t", "failed")
    assert (failed.status, "Traceback" in failed.err) == (1, False)
    unsolved = scene("build", f"{scene.image}:unsolved", "-t", "unsolved")
    assert unsolved.status == 1
    assert unsolved.error
    assert scene.build("missing").status == 2
    broken = scene("build", scene.image.parent / "broken.py")
    assert broken.status == 1
    assert "IndexError" in broken.error
    private = canaries["environment of a step"]
    assert scene("run", "-e", f"TOKEN={private}", "app", "sh", "-c", 'sleep 0.1; test -n "$TOKEN"').status == 0
    for words in (["inspect", "app", "--json"], ["images", "--json"], ["verify", "app", "--deep"], ["fsck", "--json"]):
        assert scene(*words).status == 0

    scene.seen.tree(scene.onesec.root)
    scene.seen.tree(scene.onesec.run_dir)
    # what a user types stands in the words of their own call
    typed = [what for what, data in scene.seen.pieces.items() if what.startswith("cmdline") and b"TOKEN=" in data]
    for what in typed:
        assert b"onesec" in scene.seen.pieces[what] or b"TOKEN" in scene.seen.pieces[what]
        del scene.seen.pieces[what]
    assert scene.seen.find(canaries) == []

    # ...and the search would have found them
    assert any(b"crun" in data for data in scene.watcher.processes)
    assert any(b"uv" in data for data in scene.watcher.processes)
    assert any(b"print('hello')" in data for data in scene.seen.pieces.values())
    assert any(b"PUBLIC=yes" in data for data in scene.seen.pieces.values())


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    canaries = planted()
    for number, canary in enumerate(canaries.values()):
        form = list(forms(canary).values())[number % len(forms(canary))]
        data = zstandard.compress(b"in front" + form + b"behind") if number % 2 else b"before" + form
        (tmp_path / f"{number}").write_bytes(b"x" * number + data)
    seen = Seen()
    seen.tree(tmp_path)
    assert {line.split(" (")[0] for line in seen.find(canaries)} == set(canaries)
    assert base64.b64encode(b"a" + canaries["netrc"].encode() + b"z").find(forms(canaries["netrc"])["base64+1"]) >= 0


def test_a_secret_is_a_copy_that_its_step_alone_can_read_and_that_leaves_no_trace(
    tmp_path: Path, real_machine: None
) -> None:
    source = shell_image(tmp_path)
    (tmp_path / "secret").write_text("value")
    (tmp_path / "secret").chmod(0o644)
    (tmp_path / "image.py").write_text(
        f"from onesec import Image\nbase = Image.from_oci({source!r})\n"
        "look = 'ls -ln /run/secrets/s /run/secrets; cat /run/secrets/s; grep /run/secrets /proc/self/mountinfo'\n"
        "image = base.run(look + '; ! sh -c \"echo x > /run/secrets/s\" 2>/dev/null', secrets=['s'])\n"
        "image = image.run('! test -e /run/secrets')\n"
        "user = base.user('1000:1001').run('cat /run/secrets/s; id', secrets=['s'])\n"
    )
    onesec = Onesec(tmp_path / "place")
    secret = ["--secret", f"id=s,src={tmp_path / 'secret'}"]
    said = onesec("build", tmp_path / "image.py", "-t", "app", *secret)
    assert said.status == 0, said.err
    assert "-r-------- 1 0 0 5 " in said.err
    assert " - tmpfs onesec " in said.err
    user = onesec("build", f"{tmp_path / 'image.py'}:user", "-t", "user", *secret)
    assert user.status == 0, user.err
    for name in ("app", "user"):
        listed = onesec("run", name, "ls", "-A", "/run", "/etc")
        assert listed.status == 0
        assert "secrets" not in listed.out
        assert "onesec" not in listed.out
    assert (tmp_path / "secret").read_text() == "value"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("id=s", "want id=NAME,src=FILE"),
        ("src=x,id=s", "want id=NAME,src=FILE"),
        ("id=s,src=/nowhere/at/all", "no such file"),
        ("id=s,src=/etc", "no such file"),
        ("id=../../etc/passwd,src=/etc/hostname", "want a name of letters"),
        ("id=a/b,src=/etc/hostname", "want a name of letters"),
        ("id=.,src=/etc/hostname", "want a name of letters"),
        ("id=..,src=/etc/hostname", "want a name of letters"),
        ("id=,src=/etc/hostname", "want a name of letters"),
        ("id=a\0b,src=/etc/hostname", "want a name of letters"),
    ],
)
def test_a_secret_that_is_none_is_refused_before_anything_is_made(word: str, message: str, tmp_path: Path) -> None:
    onesec = Onesec(tmp_path)
    (tmp_path / "image.py").write_text("from onesec import Image\nimage = Image.from_oci('oci:/x:t')\n")
    said = onesec.here("build", tmp_path / "image.py", "--secret", word)
    assert said.status == 2
    assert message in said.error
    assert not onesec.root.exists()


def test_a_secret_larger_than_one_has_any_use_for_is_refused(tmp_path: Path, real_machine: None) -> None:
    source = shell_image(tmp_path)
    (tmp_path / "secret").write_bytes(bytes((1 << 20) + 1))
    (tmp_path / "image.py").write_text(
        f"from onesec import Image\nimage = Image.from_oci({source!r}).run('true', secrets=['s'])\n"
    )
    said = Onesec(tmp_path / "place")("build", tmp_path / "image.py", "--secret", f"id=s,src={tmp_path / 'secret'}")
    assert "want at most 1048576" in said.error
