"""A real podman beside ours, with a store of its own, on machines where podman by itself would refuse.

Two things stand in its way on test machines and are taken out of it: resource limits above those of a root without
CAP_SYS_RESOURCE (a runtime that drops them), and a hybrid cgroup hierarchy (unmounted where only podman sees it).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import PATIENCE_S

_RUNTIME = """#!/usr/bin/env python3
import json, os, sys
words = sys.argv[1:]
if "--bundle" in words:
    path = os.path.join(words[words.index("--bundle") + 1], "config.json")
    with open(path) as file:
        document = json.load(file)
    document["process"].pop("rlimits", None)
    with open(path, "w") as file:
        json.dump(document, file)
os.execv({crun!r}, ["crun", *words])
"""
_HYBRID = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'
_SYSTEM = Path("/usr/share/containers/containers.conf")


@dataclass(frozen=True, slots=True)
class Podman:
    """directory: for its store and what it needs. image: the id of what it runs."""

    directory: Path
    image: str

    def __call__(
        self, *command: str, options: Sequence[str] = (), stdin: bytes = b"", net: str = "host"
    ) -> subprocess.CompletedProcess[bytes]:
        run = ["run", "--rm", "--cgroups=disabled", f"--net={net}", *options, self.image, *command]
        return _podman(self.directory, run, stdin)

    def close(self) -> None:
        """Removes its store, which it may have left mounted."""
        _podman(self.directory, ["rm", "--all", "--force"])
        _podman(self.directory, ["rmi", "--all", "--force"])
        shutil.rmtree(_short(self.directory), ignore_errors=True)


def _short(directory: Path) -> Path:
    """Where podman runs: it takes no name of over 50 characters."""
    return Path(tempfile.gettempdir(), f"onesec-podman-{hashlib.sha256(bytes(directory)).hexdigest()[:8]}")


def podman(directory: Path, source: str) -> Podman:
    """source: an image as skopeo names it."""
    directory.mkdir()
    crun = shutil.which("crun")
    assert crun is not None
    runtime = directory / "runtime"
    runtime.write_text(_RUNTIME.format(crun=crun))
    runtime.chmod(0o755)
    system = tomllib.loads(_SYSTEM.read_text()) if _SYSTEM.exists() else {}
    capabilities = system.get("containers", {}).get("default_capabilities")
    lines = ["[containers]", f"default_capabilities = {json.dumps(capabilities)}"] if capabilities else []
    lines += ["[engine]", 'runtime = "crun"', "[engine.runtimes]", f"crun = [{json.dumps(str(runtime))}]"]
    (directory / "containers.conf").write_text("\n".join(lines) + "\n")
    pulled = _podman(directory, ["pull", "--quiet", source])
    assert pulled.returncode == 0, pulled.stderr
    return Podman(directory, pulled.stdout.decode().split()[-1])


def _podman(directory: Path, words: Sequence[str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    call = [
        "podman", "--root", str(directory / "root"), "--runroot", str(_short(directory)), "--storage-driver", "vfs",
        "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--tmpdir", str(directory / "tmp"), *words,
    ]  # fmt: skip
    environment: Mapping[str, str] = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(directory),
        "CONTAINERS_CONF": str(directory / "containers.conf"),
    }
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", _HYBRID, "sh", *call],
        input=stdin,
        capture_output=True,
        env=environment,
        timeout=PATIENCE_S,
        check=False,
    )
