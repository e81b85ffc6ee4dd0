"""What a build needs from the worker's side: a sandbox for commands, made of the same parts as `onesec run`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cext.errors import UsageError
from imagebuilder.errors import CommandError
from imagebuilder.sandbox import HOST_FILES, Changes, Command
from imagebuilder.upper import Base
from lazyfs import container
from lazyfs.probe import probe
from lazyfs.runtime import Stopper
from lazyfs.runtime_config import Private, PrivateFile, RunOptions, image_config
from onesec.config import Config
from onesec.images import serve
from registry.decoded import read_decoded
from registry.image import open_resolved
from registry.layout import Layout, Resolved
from registry.model import LAYER, PACK, LayerRecord, Manifest

CA_FILE = "ca.pem"
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
_SECRETS = "/run/secrets"
_CA_MAX = 8 << 20
SECRET_MAX = 1 << 20
"""Bytes of one secret."""


def open_tree(layout: Layout) -> Callable[[Sequence[LayerRecord]], Base]:
    """The merged tree of layers, bottom first."""

    def opened(layers: Sequence[LayerRecord]) -> Base:
        from lazyfs.index.layer import open_tree as tree
        from lazyfs.merge import merge

        return tree(merge([read_decoded(layout, layer.index) for layer in layers]))

    return opened


@dataclass(frozen=True, slots=True)
class LazySandbox:
    """Commands on a lazily mounted base, with the host's network and certificates."""

    config: Config
    layout: Layout
    note: Callable[[str], None] | None = None
    stopper: Stopper = field(default_factory=Stopper)

    def stop(self) -> None:
        self.stopper.stop()

    @contextmanager
    def run(self, manifest: Manifest, commands: Sequence[Command], *, domain: str) -> Iterator[Changes]:
        from lazyfs.index.layer import open_tree as tree
        from lazyfs.merge import merge

        probe().require()
        layers = [read_decoded(self.layout, blob) for blob in manifest.each(LAYER)]
        lease = self.layout.lease(manifest.digest)
        resolved = Resolved(str(manifest.digest), manifest, domain)
        with (
            open_resolved(self.layout, resolved, lease) as image,
            serve(image, self.config) as served,
            container.changes(
                served.lowers,
                image_config(image.config),
                [options(command) for command in commands],
                self._settings(),
                name="build step",
                note=self.note,
                stopper=self.stopper,
            ) as (upper, merged, failed, status),
        ):
            if failed is not None:
                raise CommandError(commands[failed].argv[-1], status)
            yield Changes(upper, merged, tree(merge(layers)), manifest.each(PACK))

    def _settings(self) -> container.Settings:
        run = self.config.run
        return container.Settings(
            root=str(self.config.root),
            run_dir=str(self.config.run_dir),
            runtime=run.runtime,
            scratch="disk",
            seccomp=None if run.seccomp is None else str(run.seccomp),
        )


def options(command: Command) -> RunOptions:
    """Certificates and secrets are copies in memory that one container sees: never files of the layer."""
    files = [PrivateFile(name, data, 0o444) for name, data in sorted(command.files.items())]
    variables = [*command.variables.items(), *command.context.env]
    bundle = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
    if os.path.isfile(bundle):
        files.append(PrivateFile(CA_FILE, read_file(bundle, _CA_MAX, "certificates"), 0o444))
        variables = [*((name, f"{HOST_FILES}/{CA_FILE}") for name in _CA_VARIABLES), *variables]
    private = [Private(HOST_FILES, tuple(files))] if files else []
    if command.secrets:
        secrets = (
            PrivateFile(name, read_file(path, SECRET_MAX, f"secret {name}"))
            for name, path in sorted(command.secrets.items())
        )
        private.append(Private(_SECRETS, tuple(secrets)))
    return RunOptions(
        command=command.argv,
        environment=tuple(variables),
        private=tuple(private),
        working_directory=command.context.workdir,
        user=command.context.user,
        network="host",
    )


def read_file(path: str, limit: int, what: str) -> bytes:
    """A file of the user's, followed wherever it leads. Raises UsageError."""
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UsageError(f"{what}: {path}: {os.strerror(error.errno or 0).lower()}") from error
    if len(data) > limit:
        raise UsageError(f"{what}: {path}: got over {limit} bytes, want at most {limit}")
    return data


def sandbox(config: Config, layout: Layout, note: Callable[[str], None] | None = None) -> LazySandbox:
    return LazySandbox(config, layout, note)
