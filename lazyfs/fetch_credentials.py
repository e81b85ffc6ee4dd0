"""What a source is read with: addresses and headers, and how long they work."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Credentials:
    """One source as the fetcher is told it. expires_at, renew_at: monotonic, inf if it does not end."""

    url: str
    headers: Sequence[str] = field(repr=False)
    expires_at: float = math.inf
    renew_at: float = math.inf
    authorities: str | None = field(default=None, repr=False)


def credentials_of(words: Mapping[str, Any]) -> list[Credentials]:
    """Blocks. Raises what the registry's errors are."""
    if "web" in words:
        return [Credentials(str(one["url"]), [str(line) for line in one["headers"]]) for one in words["web"]]
    return _registry_credentials(words["registry"])


def of_client(source: Mapping[str, Any]) -> Credentials:
    now, lifetime_s = time.monotonic(), float(source["lifetime_s"]) or math.inf
    headers = [str(line) for line in source["headers"]]
    return Credentials(str(source["url"]), headers, now + lifetime_s, now + lifetime_s / 2)


def first_try(words: Mapping[str, Any]) -> list[Credentials]:
    """The registry itself without a login. Many ask for none, and then a container need not wait for the client of
    registries to be imported; the others say 401, and wait for it.
    """
    if "web" in words:
        return credentials_of(words)
    from registry.origin import DOCKER_IO, HostSettings, api_url
    from registry.reference import Reference

    hosts = {name: HostSettings(one["plain_http"]) for name, one in words["registry"]["hosts"].items()}
    reference = Reference.parse(words["registry"]["repository"])
    host, path = reference.host, reference.path
    settings = words["registry"]["hosts"].get(host)
    if host is None or host == DOCKER_IO or (settings is not None and (settings["ca"] or settings["mirrors"])):
        return []
    return [Credentials(f"{api_url(host, hosts)}/v2/{path}/blobs/sha256:{{digest}}", [])]


def _registry_credentials(words: Mapping[str, Any]) -> list[Credentials]:
    from functools import partial

    import trio

    from registry import credentials
    from registry.client import Client, Location
    from registry.model import PACK, Descriptor, Digest
    from registry.origin import HostSettings, origin_of
    from registry.reference import Reference
    from registry.session import Surroundings
    from registry.transport import HttpTransport

    hosts = {
        name: HostSettings(one["plain_http"], one["ca"], tuple(one["mirrors"]), tuple(one["realms"]))
        for name, one in words["hosts"].items()
    }
    reference = Reference.parse(words["repository"])
    digest, size = words["probe"]
    probe = Descriptor(PACK, Digest(digest), int(size))

    async def main() -> list[Location]:
        async with HttpTransport(hosts) as transport:
            client = Client(Surroundings(transport, hosts, partial(credentials.find, os.environ)))
            with trio.fail_after(60):
                return await client.repository(reference).blob_sources(probe)

    found = []
    for one in trio.run(main):
        netloc = origin_of(one.url.replace("{digest}", "0"), "registry").netloc
        settings = hosts.get(netloc)
        ca = None if settings is None else settings.ca
        authorities = bundle(ca) if ca is not None or "SSL_CERT_FILE" in os.environ else None
        headers = [f"{name}: {value}" for name, value in one.headers.items()]
        found.append(Credentials(one.url, headers, one.expires_at, one.renew_at, authorities))
    return found


def bundle(path: str | None) -> str:
    """The system's certificates, or SSL_CERT_FILE's, and these."""
    import ssl

    system = ssl.get_default_verify_paths().cafile
    text = ""
    for name in (system, path):
        if name is not None:
            with open(name) as file:
                text += file.read() + "\n"
    return text
