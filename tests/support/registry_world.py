"""The registry client and a registry in memory, on a clock that only moves when the client sleeps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from registry.auth import Credential
from registry.client import Client, Repository
from registry.loop import Loop
from registry.model import OCI_CONFIG, PACK, Descriptor, Digest, dump_json
from registry.origin import HostSettings
from registry.pace import Pace
from registry.reference import Reference
from registry.request import Transport
from registry.session import Surroundings
from registry.thin import ThinTransport
from registry.transport import HttpTransport
from tests.support.fake_registry import FakeRegistry

T = TypeVar("T")
DATA = bytes(range(256)) * 4000  # 1 MB


@dataclass
class World:
    """now: what the client's clock says; sleeping moves it. thin: without trio and httpx, as in a start."""

    registry: FakeRegistry
    login: Credential | None = None
    others: dict[str, HostSettings] = field(default_factory=dict)
    mirrors: tuple[str, ...] = ()
    now: float = 1000.0
    slept: list[float] = field(default_factory=list)
    thin: bool = False
    _loop: Loop | None = None

    def call(self, work: Callable[[Repository], Awaitable[T]], name: str = "me/app:v1", *, push: bool = False) -> T:
        hosts = {self.registry.host: HostSettings(plain_http=True, mirrors=self.mirrors), **self.others}

        def client(transport: Transport, pace: Pace | None = None) -> Repository:
            world = Surroundings(
                transport, hosts, lambda host, path: self.login, lambda: self.now, self.sleep, lambda: 1.0, pace=pace
            )
            return Client(world).repository(Reference.parse(f"{self.registry.host}/{name}"), push=push)

        async def main() -> T:
            async with HttpTransport(hosts) as transport:
                return await work(client(transport))

        if not self.thin:
            return trio.run(main)
        with ThinTransport(hosts, {}) as transport:
            self._loop = transport.loop
            return transport.loop.run(_coroutine(work(client(transport, transport.loop))))

    async def at_once(self, works: Sequence[Callable[[], Coroutine[object, object, object]]]) -> None:
        """Inside `call`: all of them, each in a task of its own."""
        if not self.thin:
            async with trio.open_nursery() as nursery:
                for work in works:
                    nursery.start_soon(work)
            return
        assert self._loop is not None
        for task in [self._loop.start(work()) for work in works]:
            await task.result()

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


async def _coroutine(work: Awaitable[T]) -> T:
    return await work
