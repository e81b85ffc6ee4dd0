"""A registry at the far end of a link: Debian's docker-registry in the origin's namespace, filled from this host."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.macro import oci
from benchmarks.macro.link import Link, ending_with_us
from benchmarks.macro.scenario import Place, ScenarioError
from benchmarks.macro.sources import Source, fingerprint

_PORT = 5000
_PATIENCE_S = (
    120  # with a registry that starts or ends: on a busy machine that takes a while, and then it is no failure
)
_CONFIG = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {data}}}}}
http: {{addr: "{address}:{port}", secret: benchmark}}
"""


@dataclass(frozen=True, slots=True)
class Origin:
    """host: as in a reference. settings: an onesec.toml that knows it. environment: that names the settings."""

    link: Link
    host: str
    settings: Path

    def has(self, name: str) -> bool:
        """Whether there is an image of that name."""
        words = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{self.host}/{name}"]
        return subprocess.run(self.link.in_origin(words), capture_output=True, check=False).returncode == 0

    @property
    def environment(self) -> dict[str, str]:
        return {"ONESEC_CONFIG": str(self.settings)}


@contextmanager
def origin(place: Place, link: Link) -> Iterator[Origin]:
    """The registry, for the block. What it keeps stays in the place, so that it is filled once."""
    directory = place.path("origin")
    directory.mkdir(exist_ok=True)
    host = f"{link.address}:{_PORT}"
    config, settings = directory / "config.yml", directory / "onesec.toml"
    config.write_text(_CONFIG.format(data=directory / "data", address=link.address, port=_PORT))
    settings.write_text(f'[run]\nlinger = 0\n[registry."{host}"]\nplain-http = true\n')
    server = subprocess.Popen(
        link.in_origin(ending_with_us(["docker-registry", "serve", config])),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
    )
    try:
        _wait(link, server, host)
        yield Origin(link, host, settings)
    finally:
        server.terminate()
        try:
            server.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait(link: Link, server: subprocess.Popen[bytes], host: str) -> None:
    code = f"import socket; socket.create_connection(({host.split(':')[0]!r}, {_PORT}), 1)"
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        if subprocess.run(link.in_client(["python3", "-c", code]), capture_output=True, check=False).returncode == 0:
            return
        if server.poll() is not None:
            break
        time.sleep(0.1)
    raise ScenarioError("docker-registry did not start in the origin's namespace")


def offer(place: Place, found: Origin, reference: str, *, below: str = "") -> str:
    """Puts an image of the place's layout there as it is. Returns its name at the registry. below: a first component of
    the name, and so the trust domain, that several have in common.
    """
    name = f"{found.host}/{below}{reference}:plain"
    place.call(found.link.in_origin(place.onesec("push", reference, name)), environment=found.environment)
    return name


def offer_oci(place: Place, found: Origin, source: Source, kind: oci.Compression) -> str:
    """The same files there as an image of one layer, made once for each state of the files. Returns its name."""
    repository = f"{source.reference}-{kind.replace(':', '-')}"
    stamp = place.path(f"origin/{repository}.stamp")
    wanted = fingerprint(source.plain)
    if not (stamp.exists() and stamp.read_text() == wanted and found.has(repository)):
        layout = place.path(f"oci-{repository}")
        shutil.rmtree(layout, ignore_errors=True)
        try:
            oci.archive(source.plain, layout, "plain", kind)
            chunked = ["--dest-compress-format", kind] if kind == "zstd:chunked" else []
            copy = ["skopeo", "copy", "-q", "--dest-tls-verify=false", *chunked, f"oci:{layout}:plain"]
            place.call(found.link.in_origin([*copy, f"docker://{found.host}/{repository}"]))
        finally:
            shutil.rmtree(layout, ignore_errors=True)
        stamp.write_text(wanted)
    return f"{found.host}/{repository}"


def fill(place: Place, found: Origin, reference: str, workload: Sequence[str]) -> None:
    """Puts the image there as ours, tagged plain and, with a boot pack of the workload, boot. Not through the link."""
    root = place.path("with-boot-pack")
    source = offer(place, found, reference)
    boot = f"{found.host}/{reference}:boot"
    for call in (
        place.onesec("pull", "--all", source, "-t", reference, root=root),
        place.onesec("profile", reference, *workload, root=root),
        place.onesec("push", reference, boot, root=root),
    ):
        place.call(found.link.in_origin(call), environment=found.environment)
