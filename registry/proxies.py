"""Proxies as the environment names them, for the engines that take none from there by themselves."""

from __future__ import annotations

from collections.abc import Mapping


def proxies_for(url: str, environment: Mapping[str, str]) -> dict[str, str | None]:
    """The proxy that the environment names for a url, as arguments of `Fetcher.set_source` and `Getter.start`."""
    scheme = url.partition(":")[0].lower()

    def named(*names: str) -> str | None:
        return next((found for name in names for key in (name, name.upper()) if (found := environment.get(key))), None)

    return {"proxy": named(f"{scheme}_proxy", "all_proxy"), "no_proxy": named("no_proxy")}
