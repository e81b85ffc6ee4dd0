"""The registry client and a registry in memory, on a clock that only moves when the client sleeps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from registry.auth import Credential
from registry.client import Client, Repository
from registry.model import OCI_CONFIG, PACK, Descriptor, Digest, dump_json
from registry.origin import HostSettings
from registry.reference import Reference
from registry.session import Surroundings
from registry.transport import HttpTransport
from tests.support.fake_registry import FakeRegistry

T = TypeVar("T")
DATA = bytes(range(256)) * 4000  # 1 MB


@dataclass
class World:
    """now: what the client's clock says; sleeping moves it."""

    registry: FakeRegistry
    login: Credential | None = None
    others: dict[str, HostSettings] = field(default_factory=dict)
    mirrors: tuple[str, ...] = ()
    now: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def call(self, work: Callable[[Repository], Awaitable[T]], name: str = "me/app:v1", *, push: bool = False) -> T:
        async def main() -> T:
            hosts = {self.registry.host: HostSettings(plain_http=True, mirrors=self.mirrors), **self.others}
            async with HttpTransport(hosts) as transport:
                world = Surroundings(
                    transport, hosts, lambda host, path: self.login, lambda: self.now, self.sleep, lambda: 1.0
                )
                reference = Reference.parse(f"{self.registry.host}/{name}")
                return await work(Client(world).repository(reference, push=push))

        return trio.run(main)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def image(self, text: str = "x", name: str = "v1") -> bytes:
        """A manifest with nothing but a config."""
        config = self.registry.put_blob("me/app", text.encode())
        descriptor = Descriptor(OCI_CONFIG, Digest(config), len(text))
        raw = dump_json({"schemaVersion": 2, "config": descriptor.to_json(), "layers": []})
        self.registry.put_manifest("me/app", name, raw)
        return raw

    def blob(self, data: bytes = DATA) -> Descriptor:
        """A blob of the repository me/app."""
        return Descriptor(PACK, Digest(self.registry.put_blob("me/app", data)), len(data))
