"""Running a plan, with a sandbox that only looks at what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from imagebuilder import debian
from imagebuilder.debian import Mirrors
from imagebuilder.image import Image
from imagebuilder.layer import DIRECTORY, LayerWriter, Workshop, entry
from imagebuilder.plan import Inputs, plan
from imagebuilder.progress import Silent
from imagebuilder.run import World, build
from imagebuilder.sandbox import HOST_FILES, Changes, Command
from imagebuilder.steps import StepResult
from lazyfs.index.layer import open_tree
from lazyfs.merge import merge
from registry.decoded import read_decoded
from registry.layout import Layout
from registry.model import LayerRecord, Manifest


@dataclass
class Looking:
    """A sandbox in which commands do nothing."""

    layout: Layout
    upper: Path
    seen: list[tuple[str, list[Command]]] = field(default_factory=list)

    def stop(self) -> None:
        raise AssertionError

    @contextmanager
    def run(self, manifest: Manifest, commands: Sequence[Command], *, domain: str) -> Iterator[Changes]:
        self.seen.append((domain, list(commands)))
        self.upper.mkdir(exist_ok=True)
        layers = [read_decoded(self.layout, blob) for blob in manifest.layers if "layer" in blob.media_type]
        yield Changes(str(self.upper), str(self.upper), open_tree(merge(layers)), ())


def root(layer: LayerWriter) -> None:
    layer.add(b"", entry(DIRECTORY, mode=0o755))


def built(
    place: Path,
    image: Image,
    base: Callable[[LayerRecord], StepResult],
    environment: Mapping[str, str] | None = None,
    secrets: Mapping[str, str] | None = None,
) -> tuple[Looking, str]:
    """Runs the steps behind a base that is there already; what the sandbox saw, and the image's domain."""
    layout = Layout.open(place / "root")
    steps, inputs = plan(image, Inputs()), Inputs()
    sandbox = Looking(layout, place / "upper")
    with layout.writing(), Workshop(layout) as workshop:
        layout.remember_bytes(steps.steps[0].key, base(workshop.make(root)).dump())
        world = World(
            workshop,
            Silent(),
            lambda layers: open_tree(merge([read_decoded(layout, layer.index) for layer in layers])),
            environment or {},
            sandbox,
            secrets or {},
        )
        _, domain = trio.run(build, steps, inputs, world)
    return sandbox, domain


def test_a_step_runs_in_the_trust_domain_that_its_base_came_from(tmp_path: Path) -> None:
    image = Image.from_oci("docker://example.com/team/base:1").run("true", "false")
    sandbox, domain = built(tmp_path, image, lambda layer: StepResult((layer,), {}, "example.com/team"))
    assert domain == "example.com/team"
    ((seen, commands),) = sandbox.seen
    assert seen == "example.com/team"
    assert [command.argv[-1] for command in commands] == ["true", "false"]


def test_a_step_has_the_hosts_proxies_but_the_image_has_not(tmp_path: Path) -> None:
    image = Image.from_oci("oci:/x:t").run("true")
    proxies = {"https_proxy": "http://me:secret@proxy:3128", "NO_PROXY": "local"}
    environment = {**proxies, "AWS_SECRET_ACCESS_KEY": "x", "HOME": "/root"}
    sandbox, _ = built(tmp_path, image, lambda layer: StepResult((layer,)), environment)
    ((_, (command,)),) = sandbox.seen
    assert command.variables == proxies
    assert command.context.env == ()
    assert (command.files, command.secrets) == ({}, {})
    assert "secret" not in repr(command)


def test_a_step_has_the_secrets_it_asked_for_and_no_others(tmp_path: Path) -> None:
    image = Image.from_oci("oci:/x:t").run("true", secrets=["one"]).run("false")
    given = {"one": "/h/one", "two": "/h/two"}
    sandbox, _ = built(tmp_path, image, lambda layer: StepResult((layer,)), secrets=given)
    assert [dict(command.secrets) for _, (command,) in sandbox.seen] == [{"one": "/h/one"}, {}]


def test_apt_in_a_step_on_debian_finds_the_hosts_mirrors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keyring = tmp_path / "keyring.gpg"
    keyring.write_bytes(b"keys")
    monkeypatch.setattr(debian, "host_mirrors", lambda: Mirrors(("https://me:pw@mirror/debian",), ("http://s/",)))
    monkeypatch.setattr(debian, "find_keyring", lambda _: str(keyring))
    monkeypatch.setattr(debian, "host_apt_options", lambda: ('Acquire::http::Proxy "http://proxy:1";',))
    sandbox, _ = built(
        tmp_path, Image.debian_slim(python_version="3.11").run("apt-get update"), lambda layer: StepResult((layer,))
    )
    ((_, (command,)),) = sandbox.seen
    assert command.variables["APT_CONFIG"] == f"{HOST_FILES}/apt.conf"
    assert command.files["keyring.gpg"] == b"keys"
    sources = command.files["sources.list"].decode()
    assert f"deb [signed-by={HOST_FILES}/keyring.gpg] https://me:pw@mirror/debian bookworm main\n" in sources
    assert "bookworm-security" in sources
    configuration = command.files["apt.conf"].decode()
    assert 'Acquire::http::Proxy "http://proxy:1";' in configuration
    assert f'Dir::Etc::sourcelist "{HOST_FILES}/sources.list";' in configuration


def test_files_that_the_hosts_apt_names_come_along(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(b"certificate")
    options = (
        f'Acquire::https::CAInfo "{tmp_path}/ca.pem";',
        f'Acquire::https::mirror::SslCert "{tmp_path}/ca.pem";',
        'Acquire::Retries "3";',
        'Dir::Etc::netrc "/etc/apt/auth.conf";',
    )
    moved, files = debian.move_files(options, "/run/x")
    assert moved == [
        'Acquire::https::CAInfo "/run/x/host-0.pem";',
        'Acquire::https::mirror::SslCert "/run/x/host-1.pem";',
        'Acquire::Retries "3";',
    ]
    assert set(files.values()) == {b"certificate"}
