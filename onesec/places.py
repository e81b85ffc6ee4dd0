"""Where blobs of registries are, in the words of those who fetch them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from lazyfs.remote import Source
from onesec.config import Config
from registry.client import Location
from registry.origin import HostSettings, origin_of


def hosts(config: Config) -> dict[str, HostSettings]:
    """The registries of the configuration."""
    return {
        name: HostSettings(one.plain_http, None if one.ca is None else str(one.ca), one.mirrors, one.realms)
        for name, one in config.registries.items()
    }


def source_of(location: Location, known: Mapping[str, HostSettings]) -> Source:
    """A location for requests of this process's children."""
    settings = known.get(origin_of(location.url.replace("{digest}", "0"), "registry").netloc)
    authorities = None
    if settings is not None and settings.ca is not None:
        from lazyfs.fetch_credentials import bundle

        authorities = bundle(settings.ca)
    return Source(
        location.url,
        tuple(f"{name}: {value}" for name, value in location.headers.items()),
        0 if location.expires_at == math.inf else max(0.001, location.expires_at - time.monotonic()),
        authorities,
    )
