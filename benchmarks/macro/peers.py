"""How each peer gets an image from the origin and runs it, on a host that has nothing of it.

A peer is a list of commands for the client's namespace and what it leaves behind. Those whose programs are not
installed say so and are left out. Every container runs `first` (programs/first.c) before the workload: a static program
of the host, mounted where no image has a file, that notes the time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.macro import native
from benchmarks.macro.harness import missing
from benchmarks.macro.origin import Origin
from benchmarks.macro.scenario import Place
from benchmarks.macro.sources import Source


@dataclass(frozen=True, slots=True)
class Peer:
    """commands: the pull, then the run. state: directories that hold what was fetched; gone means the host is empty."""

    name: str
    commands: Sequence[Sequence[str]]
    state: Sequence[Path]

    def forget(self) -> None:
        self.remove()
        for path in self.state:
            path.mkdir(parents=True)

    def remove(self) -> None:
        for path in self.state:
            shutil.rmtree(path, ignore_errors=True)


FIRST = "/dev/first"
"""Where containers have it: /dev is a new file system in each, so that nothing is left in an image or a tree."""


def first() -> Path:
    """The program on this host."""
    return native.program("first", flags=("-static",))


_LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096")
"""Below any hard limit: podman's own wishes are above it where this runs in a sandbox."""


def podman(place: Place, found: Origin, source: Source, kind: str) -> Peer | str:
    """podman pull and run; kind: the layers' compression. A text says why not."""
    reason = missing("podman", "crun")
    if reason:
        return reason
    # podman takes no more than 50 characters for its second directory
    state = [place.path(f"podman-{kind}"), Path(f"/tmp/onesec-bench-{os.getpid()}-{kind}")]
    base = ["podman", "--root", str(state[0]), "--runroot", str(state[1]), "--cgroup-manager", "cgroupfs"]
    image = f"{found.host}/{source.reference}-{kind}"
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
    return Peer(f"podman, {kind}", [[*base, "pull", "-q", "--tls-verify=false", image], [*base, *run]], state)


def onesec(place: Place, found: Origin, source: Source) -> list[Peer]:
    """Ours: run by its name at the registry, with a boot pack and without; and everything fetched before the start."""
    peers = []
    volume, workload = ("-v", f"{first()}:{FIRST}:ro"), (FIRST, *source.workload)
    for name, what in (("boot pack", "boot"), ("no boot pack", "plain")):
        root = place.path(f"pulled-{what}")
        run = place.onesec("run", *volume, f"{found.host}/{source.reference}:{what}", *workload, root=root)
        peers.append(Peer(f"onesec, {name}", [run], [root]))
    root = place.path("pulled-all")
    image = f"{found.host}/{source.reference}:plain"
    pull = place.onesec("pull", "--all", image, root=root)
    peers.append(Peer("onesec, pull --all", [pull, place.onesec("run", *volume, image, *workload, root=root)], [root]))
    return peers


LAZY_PEERS = {
    "stargz": ("containerd-stargz-grpc", "ctr-remote", "containerd"),
    "SOCI": ("soci-snapshotter-grpc", "soci", "containerd"),
    "nydus": ("nydusd", "containerd-nydus-grpc", "nydusify"),
}
"""Lazy loaders that are not in Debian, and the programs that a measurement of each needs."""


def absent() -> dict[str, str]:
    """The lazy peers that cannot run here, with the reason."""
    return {name: reason for name, programs in LAZY_PEERS.items() if (reason := missing(*programs))}
