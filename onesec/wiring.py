"""What a build needs from the worker's side: a sandbox for commands, made of the same parts as `onesec run`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from imagebuilder.errors import CommandError
from imagebuilder.layer import Base
from imagebuilder.sandbox import Changes, Command
from lazyfs import container
from lazyfs.probe import probe
from lazyfs.runtime_config import RunOptions, Volume, image_config
from onesec.config import Config
from onesec.images import serve
from registry.image import open_resolved, read_decoded
from registry.layout import LOCAL_DOMAIN, Layout, Resolved
from registry.model import LAYER, PACK, LayerRecord, Manifest

_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
_CA_PLACE = "/run/onesec-ca.pem"
_SECRETS = "/run/secrets"


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

    @contextmanager
    def run(self, manifest: Manifest, commands: Sequence[Command]) -> Iterator[Changes]:
        from lazyfs.index.layer import open_tree as tree
        from lazyfs.merge import merge

        probe().require()
        layers = [read_decoded(self.layout, blob) for blob in manifest.each(LAYER)]
        lease = self.layout.lease(manifest.digest)
        resolved = Resolved(str(manifest.digest), manifest, LOCAL_DOMAIN)
        with (
            open_resolved(self.layout, resolved, lease) as image,
            serve(image, self.config) as served,
            container.changes(
                served.metadata,
                served.objects,
                image_config(image.config),
                [options(command) for command in commands],
                self._settings(),
                name="build step",
            ) as (upper, failed, status),
        ):
            if failed is not None:
                raise CommandError(commands[failed].argv[-1], status)
            yield Changes(upper, tree(merge(layers)), manifest.each(PACK))

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
    """Certificates and secrets are bound read-only from the host: they are files of the mount, never of the layer."""
    volumes = [Volume(path, f"{_SECRETS}/{name}", True) for name, path in sorted(command.secrets.items())]
    variables = list(command.context.env)
    bundle = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
    if os.path.isfile(bundle):
        volumes.append(Volume(os.path.realpath(bundle), _CA_PLACE, True))
        variables = [*((name, _CA_PLACE) for name in _CA_VARIABLES), *variables]
    return RunOptions(
        command=command.argv,
        environment=tuple(variables),
        volumes=tuple(volumes),
        working_directory=command.context.workdir,
        user=command.context.user,
        network="host",
    )


def sandbox(config: Config, layout: Layout) -> LazySandbox:
    return LazySandbox(config, layout)
