"""How each peer gets an image from the origin and runs it, on a host that has nothing of it.

A peer is a list of commands for the client's namespace and what it leaves behind. Those whose programs are not
installed say so and are left out. Every container runs `first` (programs/first.c) before the workload: a static program
of the host, mounted where no image has a file, that notes the time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.macro import native, oci
from benchmarks.macro.harness import missing
from benchmarks.macro.origin import Origin, offer, offer_oci
from benchmarks.macro.scenario import Place
from benchmarks.macro.services import Service, unmount_below
from benchmarks.macro.sources import Source, tiny


@dataclass(frozen=True, slots=True)
class Peer:
    """commands: the pull, then the run. state: directories that hold what was fetched; gone means the host is empty.
    daemons: writes their configuration and says how to start what has to be up. environment: of all of them. warm: run
    after the page cache was dropped, before the clock starts.
    """

    name: str
    commands: Sequence[Sequence[str]]
    state: Sequence[Path]
    daemons: Callable[[], Sequence[Service]] = tuple
    environment: Mapping[str, str] = field(default_factory=dict)
    warm: Sequence[Sequence[str]] = ()

    def forget(self) -> None:
        self.remove()
        for path in self.state:
            path.mkdir(parents=True)

    def remove(self) -> None:
        for path in self.state:
            unmount_below(path)
            shutil.rmtree(path, ignore_errors=True)


FIRST = "/dev/first"
"""Where containers have it: /dev is a new file system in each, so that nothing is left in an image or a tree."""


def first() -> Path:
    """The program on this host."""
    return native.program("first", flags=("-static",))


_LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096")
"""Below any hard limit: podman's own wishes are above it where this runs in a sandbox."""


_PARTIAL_PULLS = 5
"""The first podman that reads zstd:chunked as such: it asks for the files that it lacks, on an empty host for all."""


_CHUNKED = """
[storage]
driver = "overlay"
graphroot = "{root}"
runroot = "{run}"
[storage.options]
pull_options = {{enable_partial_images = "true", use_hard_links = "false", ostree_repos = ""}}
"""


def podman(place: Place, found: Origin, source: Source, kind: oci.Compression) -> Peer | str:
    """podman pull and run; kind: the layers' compression. A text says why not."""
    reason = missing("podman", "crun")
    if reason:
        return reason
    if kind == "zstd:chunked" and podman_version() < _PARTIAL_PULLS:
        return f"got podman {podman_version()}, want {_PARTIAL_PULLS} or newer (Debian 13)"
    image = offer_oci(place, found, source, kind)
    suffix = kind.replace(":", "-")
    # podman takes no more than 50 characters for its second directory
    state = [place.path(f"podman-{suffix}"), Path(f"/tmp/onesec-bench-{os.getpid()}-{suffix}")]
    base = ["podman", "--cgroup-manager", "cgroupfs"]
    environment = {}
    if kind == "zstd:chunked":  # options of the storage count only where its place is not given by words
        settings = place.path("podman-chunked.conf")
        settings.write_text(_CHUNKED.format(root=state[0], run=state[1]))
        environment = {"CONTAINERS_STORAGE_CONF": str(settings)}
    else:
        base += ["--root", str(state[0]), "--runroot", str(state[1])]
    run = [
        "run",
        "--rm",
        "--cgroups=disabled",
        *_LIMITS,
        "--network=host",
        "--log-driver=none",
        *("-v", f"{first()}:{FIRST}:ro"),
        image,
        FIRST,
        *source.workload,
    ]
    pull = [*base, "pull", "-q", "--tls-verify=false", image]
    return Peer(f"podman, {kind}", [pull, [*base, *run]], state, environment=environment)


def podman_version() -> int:
    """The first number of it."""
    said = subprocess.run(["podman", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\d+", said)
    return int(found.group()) if found else 0


def onesec(place: Place, found: Origin, source: Source, *, pull_all: bool) -> list[Peer]:
    """Ours: run by its name at the registry, with a boot pack and without; with one after another container has just
    started on this host, so that onesec's own programs are in memory. pull_all: and with everything fetched before it.
    """
    peers = []
    volume, workload = ("-v", f"{first()}:{FIRST}:ro"), (FIRST, *source.workload)
    other = place.path("pulled-other")
    small = offer(place, found, tiny(place).reference)
    warm = place.onesec("run", *volume, small, FIRST, "/bin/true", root=other, run="run-other")
    for name, what, before in (
        ("boot pack", "boot", []),
        ("no boot pack", "plain", []),
        ("boot pack, its programs in memory", "boot", [warm]),
    ):
        root = place.path(f"pulled-{what}")
        run = place.onesec("run", *volume, f"{found.host}/{source.reference}:{what}", *workload, root=root)
        peers.append(Peer(f"onesec, {name}", [run], [root, other], warm=before))
    if not pull_all:
        return peers
    root = place.path("pulled-all")
    image = f"{found.host}/{source.reference}:plain"
    pull = place.onesec("pull", "--all", image, root=root)
    peers.append(Peer("onesec, pull --all", [pull, place.onesec("run", *volume, image, *workload, root=root)], [root]))
    return peers
