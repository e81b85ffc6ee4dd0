"""Lazy loaders behind containerd: stargz, and, written from their manuals and never run here, SOCI, nydus, overlaybd.

Each is a snapshotter daemon beside containerd, an image in its own format at the origin, a pull that moves metadata and
a run. Daemons are up, and have forgotten everything, before the clock starts. Programs are looked for in the PATH and
in `tools/bin` of the place: benchmarks/stargz/build makes the one that Debian lacks of stargz.

Their images are made of the plain one at the origin. stargz is measured at its best: `ctr-remote image optimize` runs
the workload, and what it read comes first in the layer and is fetched before anybody asks for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.macro import oci, services
from benchmarks.macro.harness import missing
from benchmarks.macro.origin import Origin, offer_oci
from benchmarks.macro.peers import FIRST, Peer, first
from benchmarks.macro.scenario import Place
from benchmarks.macro.services import Service
from benchmarks.macro.sources import Source, fingerprint

_CONTAINERD = """
version = 2
root = "{state}/containerd"
state = "{state}/containerd-state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{state}/containerd.sock"
[proxy_plugins.{plugin}]
type = "snapshot"
address = "{socket}"
"""
_MIRROR = '[[resolver.host."{host}".mirrors]]\nhost = "{host}"\ninsecure = true\n'


@dataclass(frozen=True, slots=True)
class Site:
    """Where one works. state: a short path, since sockets lie below it. host: the origin's, as in a reference."""

    state: Path
    host: str

    @property
    def socket(self) -> Path:
        return self.state / "snapshotter.sock"

    def write(self, name: str, text: str) -> str:
        self.state.mkdir(parents=True, exist_ok=True)
        (self.state / name).write_text(text)
        return str(self.state / name)


@dataclass(frozen=True, slots=True)
class Loader:
    """name: the snapshotter's in containerd. programs: what it needs. tried: it ran here, not only in its manual.

    daemon: writes its configuration and says how to start it. convert: from a plain image to one of its own, pushed.
    pull: metadata of the image. client: the program whose `run` starts a container of it.
    """

    name: str
    programs: Sequence[str]
    tried: bool
    daemon: Callable[[Site], Service]
    convert: Callable[[str, str, Source], list[list[str]]]
    pull: Callable[[str], list[str]]
    client: str = "ctr"
    of: oci.Compression = "gzip"  # layers of the plain image that it is made of

    @property
    def shown(self) -> str:
        return self.name if self.tried else f"{self.name} (untried adapter)"


def peers(place: Place, found: Origin, source: Source) -> tuple[list[Peer], dict[str, str]]:
    """Those that can run here, their images put at the origin; and of the others why not."""
    environment = {"PATH": f"{place.path('tools/bin')}:{os.environ['PATH']}"}
    chosen, lacking = [], {}
    for loader in LOADERS:
        reason = missing(*loader.programs, path=environment["PATH"])
        if reason:
            lacking[loader.shown] = reason
            continue
        site = Site(Path(f"/tmp/onesec-bench-{os.getpid()}-{loader.name}"), found.host)
        peer = _peer(loader, site, source, environment)
        _offer(place, found, loader, peer, source)
        chosen.append(peer)
    return chosen, lacking


def _peer(loader: Loader, site: Site, source: Source, environment: dict[str, str]) -> Peer:
    config = _CONTAINERD.format(state=site.state, plugin=loader.name, socket=site.socket)
    image = f"{site.host}/{source.reference}-{loader.name}:latest"
    run = [loader.client, "run", "--rm", f"--snapshotter={loader.name}", "--net-host", "--cgroup", ""]
    run += ["--runc-binary", "crun", "--mount", f"type=bind,src={first()},dst={FIRST},options=rbind:ro"]

    def daemons() -> list[Service]:
        file = site.write("containerd.toml", config)
        return [loader.daemon(site), Service(["containerd", "--config", file], site.state / "containerd.sock")]

    return Peer(
        loader.shown,
        [loader.pull(image), [*run, image, "onesec-bench", FIRST, *source.workload]],
        [site.state],
        daemons,
        {**environment, "CONTAINERD_ADDRESS": f"{site.state}/containerd.sock"},
    )


def _offer(place: Place, found: Origin, loader: Loader, peer: Peer, source: Source) -> None:
    """Its image at the origin, made once for each state of the files and workload; on the origin's side of the link."""
    plain = f"{offer_oci(place, found, source, loader.of)}:latest"
    target = f"{found.host}/{source.reference}-{loader.name}:latest"
    stamp = place.path(f"origin/{source.reference}-{loader.name}.stamp")
    wanted = json.dumps([fingerprint(source.plain), source.workload])
    if stamp.exists() and stamp.read_text() == wanted and found.has(f"{source.reference}-{loader.name}"):
        return
    peer.forget()
    try:
        with services.running(peer.daemons(), found.link.in_origin, peer.environment):
            for call in loader.convert(plain, target, source):
                place.call(found.link.in_origin(call), environment=peer.environment)
    finally:
        peer.remove()
    stamp.write_text(wanted)


def _stargz(site: Site) -> Service:
    file = site.write("stargz.toml", _MIRROR.format(host=site.host))
    words = ["-address", str(site.socket), "-root", str(site.state / "stargz"), "-config", file]
    return Service(["containerd-stargz-grpc", *words], site.socket)


def _to_stargz(plain: str, target: str, source: Source) -> list[list[str]]:
    program, *words = source.workload
    optimize = ["ctr-remote", "images", "optimize", "--oci", "--period", "120"]  # it ends with the container
    optimize += ["--entrypoint", json.dumps([program]), "--args", json.dumps(words)]
    return [
        ["ctr-remote", "images", "pull", "--plain-http", plain],
        [*optimize, plain, target],
        ["ctr-remote", "images", "push", "--plain-http", target],
    ]


def _soci(site: Site) -> Service:
    file = site.write("soci.toml", _MIRROR.format(host=site.host))
    words = ["--address", str(site.socket), "--root", str(site.state / "soci"), "--config", file]
    return Service(["soci-snapshotter-grpc", *words], site.socket)


def _to_soci(plain: str, target: str, source: Source) -> list[list[str]]:
    return [
        ["ctr", "images", "pull", "--plain-http", plain],
        ["ctr", "images", "tag", plain, target],
        ["ctr", "images", "push", "--plain-http", target],
        ["soci", "create", target],
        ["soci", "push", "--plain-http", target],
    ]


_NYDUSD = {
    "device": {
        "backend": {
            "type": "registry",
            "config": {"scheme": "http", "skip_verify": True, "timeout": 5, "connect_timeout": 5, "retry_limit": 2},
        },
        "cache": {"type": "blobcache", "config": {"work_dir": "cache"}},
    },
    "mode": "direct",
    "digest_validate": False,
    "iostats_files": False,
    "enable_xattr": True,
    "fs_prefetch": {"enable": True, "threads_count": 4},
}
"""As its manual has it, but for the origin's scheme."""


def _nydus(site: Site) -> Service:
    file = site.write("nydusd.json", json.dumps(_NYDUSD))
    words = ["--nydusd-config", file, "--root", str(site.state / "nydus"), "--address", str(site.socket)]
    return Service(["containerd-nydus-grpc", *words, "--log-to-stdout"], site.socket)


def _to_nydus(plain: str, target: str, source: Source) -> list[list[str]]:
    words = ["--source", plain, "--source-insecure", "--target", target, "--target-insecure"]
    return [["nydusify", "convert", *words]]


_OVERLAYBD = "/opt/overlaybd/snapshotter"
_OVERLAYBD_CTR = f"{_OVERLAYBD}/ctr"


def _overlaybd(site: Site) -> Service:
    """overlaybd-tcmu, and its module in the kernel, are the host's: one for all."""
    settings = {"root": str(site.state / "overlaybd"), "address": str(site.socket)}
    return Service(
        [f"{_OVERLAYBD}/overlaybd-snapshotter", site.write("overlaybd.json", json.dumps(settings))], site.socket
    )


def _to_overlaybd(plain: str, target: str, source: Source) -> list[list[str]]:
    return [
        ["ctr", "images", "pull", "--plain-http", plain],
        [_OVERLAYBD_CTR, "obdconv", plain, target],
        ["ctr", "images", "push", "--plain-http", target],
    ]


LOADERS = (
    Loader(
        "stargz",
        ("containerd-stargz-grpc", "ctr-remote", "containerd", "crun"),
        True,
        _stargz,
        _to_stargz,
        lambda image: ["ctr-remote", "images", "rpull", "--plain-http", image],
        "ctr-remote",
        "zstd",
    ),
    Loader(
        "soci",
        ("soci-snapshotter-grpc", "soci", "containerd", "ctr", "crun"),
        False,
        _soci,
        _to_soci,
        lambda image: ["soci", "image", "rpull", "--plain-http", image],
    ),
    Loader(
        "nydus",
        ("containerd-nydus-grpc", "nydusd", "nydus-image", "nydusify", "ctr-remote", "containerd", "crun"),
        False,
        _nydus,
        _to_nydus,
        lambda image: ["ctr-remote", "image", "rpull", "--plain-http", image],
        "ctr-remote",
    ),
    Loader(
        "overlaybd",
        (f"{_OVERLAYBD}/overlaybd-snapshotter", _OVERLAYBD_CTR, "containerd", "ctr", "crun"),
        False,
        _overlaybd,
        _to_overlaybd,
        lambda image: [_OVERLAYBD_CTR, "rpull", "--plain-http", image],
    ),
)
"""All but the first are written from their projects' manuals. nydus has a ctr-remote of its own, with the same name."""
