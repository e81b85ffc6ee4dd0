"""Which URLs may be talked to, and which of them may see a secret. Pure.

An *origin* is scheme, host and port. A registry's secrets go to its own origin and, where a token is asked for, to a
realm that belongs to it; never to where a redirect leads, and never in plain text unless a person configured
the host so.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import SplitResult, parse_qsl, urljoin, urlsplit

from cext.record import Record
from registry.errors import BadAnswerError

URL_MAX = 8192  # characters; a URL signed by a cloud has 1 to 3 thousand
DOCKER_IO = "docker.io"
_DOCKER_API = "registry-1.docker.io"
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_HOSTNAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,62}\.?))+|[0-9a-f:.]+")
# Names under which strangers get names: two hosts in one of these are not one site. Not complete, and need not be: a
# miss costs a `realms` line or lets a registry send its own password to a neighbour, which it could do anyway.
_SHARED = ("amazonaws.com", "azurecr.io", "azurewebsites.net", "cloudfront.net", "github.io", "pkg.dev", "run.app")
_SECOND_LEVEL = {"ac", "co", "com", "edu", "go", "gov", "ne", "net", "or", "org"}
_PRIVATE_NAMES = (".local", ".localhost", ".internal", ".intranet", ".lan", ".home", ".corp", ".home.arpa")


class HostSettings(Record):
    """What a person said about one registry host (`[registry."HOST:PORT"]`).

    ca: a PEM file to trust beside the system's. mirrors: hosts asked first when reading. realms: further hosts that may
    be given this registry's password for a token.
    """

    plain_http: bool = False
    ca: str | None = None
    mirrors: tuple[str, ...] = ()
    realms: tuple[str, ...] = ()


Hosts = Mapping[str, HostSettings]
_DEFAULT = HostSettings()


class Origin(Record):
    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"

    @property
    def netloc(self) -> str:
        """As a person writes it: without the port that the scheme implies."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _port(self.scheme) else f"{host}:{self.port}"


def _port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def settings_for(hosts: Hosts, netloc: str) -> HostSettings:
    found = hosts.get(netloc)
    if found is None and netloc == _DOCKER_API:
        found = hosts.get(DOCKER_IO)
    return found or _DEFAULT


def api_url(host: str, hosts: Hosts) -> str:
    """Where the API of the registry named host is, without a slash at the end."""
    scheme = "http" if settings_for(hosts, host).plain_http else "https"
    return f"{scheme}://{_DOCKER_API if host == DOCKER_IO else host}"


def split_url(url: str, who: str) -> SplitResult:
    """An absolute http or https URL that came from outside. who: told in the error."""
    if len(url) > URL_MAX or not _VISIBLE.fullmatch(url) or "\\" in url:
        raise BadAnswerError(who, f"URL {url[:100]!r}: want at most {URL_MAX} visible characters")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadAnswerError(who, f"URL {url[:100]!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not host or not _HOSTNAME.fullmatch(host) or port == 0:
        raise BadAnswerError(who, f"URL {url[:100]!r}: want https and a host name")
    if parts.username is not None or parts.password is not None:
        raise BadAnswerError(who, f"URL at {host}: has a user name in it")
    return parts


def origin_of(url: str, who: str) -> Origin:
    parts = split_url(url, who)
    assert parts.hostname is not None  # split_url saw to it
    return Origin(parts.scheme, parts.hostname.rstrip("."), parts.port or _port(parts.scheme))


def redirected(url: str, location: str, hosts: Hosts, who: str) -> str:
    """Where an answer of url sends us: https, or a host that is configured for plain http."""
    if len(location) > URL_MAX or not _VISIBLE.fullmatch(location):
        raise BadAnswerError(who, f"redirect to {location[:100]!r}: not a URL")
    try:
        target = urljoin(url, location).partition("#")[0]
    except ValueError as error:
        raise BadAnswerError(who, f"redirect to {location[:100]!r}: {error}") from error
    origin = origin_of(target, who)
    if origin.scheme == "http" and not settings_for(hosts, origin.netloc).plain_http:
        raise BadAnswerError(who, f"redirect to {origin}: got http, want https")
    return target


def check_realm(registry: Origin, realm: str, hosts: Hosts, *, who: str, secret: bool) -> str:
    """realm, if it may be asked for a token on the registry's behalf; secret: and be told its password. who: the
    registry as the user knows it.

    Its own origin may. Any other has to be https and a public name, or be configured, as whatever; but the password
    goes only to the registry's own site, or to a host that is listed in its `realms`.
    """
    parts = split_url(realm, who)
    origin = origin_of(realm, who)
    if parts.fragment:
        raise BadAnswerError(who, f"realm {realm[:100]!r}: has a fragment")
    if origin == registry:
        return realm
    named = origin.netloc in settings_for(hosts, registry.netloc).realms
    if origin.scheme != "https" and not settings_for(hosts, origin.netloc).plain_http:
        raise BadAnswerError(who, f"wants the login at {origin}: got http, want https")
    if not (named or origin.netloc in hosts or is_public(origin.host)):
        raise BadAnswerError(
            who,
            f"wants the login at {origin}: not a public name",
            hint=f'if that is right, add it to realms under [registry."{who}"] in onesec.toml',
        )
    if secret and not named and site_of(origin.host) != site_of(registry.host):
        raise BadAnswerError(
            who,
            f"wants the password sent to {origin.netloc}, which is another site",
            hint=f'if that is right, add it to realms under [registry."{who}"] in onesec.toml',
        )
    return realm


def is_public(host: str) -> bool:
    """Whether a name could be anybody's: not an address of a private range, not a name of the local network."""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        # 0x7f.1 and 2130706433 are addresses to some resolvers
        return "." in host and not host.endswith(_PRIVATE_NAMES) and not re.fullmatch(r"[0-9a-fx.]*", host)


def site_of(host: str) -> str:
    """The part of a name that one owner has registered, near enough."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    if host.endswith(tuple(f".{shared}" for shared in _SHARED)):
        return host
    labels = host.split(".")
    own = 3 if len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in _SECOND_LEVEL else 2
    return ".".join(labels[-own:])


# ---------------------------------------------------------------------- signed URLs

_STAMPS = (("x-amz-date", "x-amz-expires"), ("x-goog-date", "x-goog-expires"))
_ABSOLUTE = ("expires", "exp", "expiry")


def signed_until(url: str) -> float | None:
    """When a URL's signature ends, in seconds since 1970 by its signer's clock. None: it does not say."""
    from datetime import UTC, datetime

    query = {key.lower(): value for key, value in parse_qsl(urlsplit(url).query, max_num_fields=200)}
    for begin, seconds in _STAMPS:
        if begin in query and (lifetime := _number(query.get(seconds))) is not None:
            try:
                began = datetime.strptime(query[begin], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            except ValueError:
                return None
            return began.timestamp() + lifetime
    if "sig" in query and "se" in query:  # Azure
        try:
            until = datetime.fromisoformat(query["se"])
        except ValueError:
            return None
        return (until if until.tzinfo else until.replace(tzinfo=UTC)).timestamp()
    for key in _ABSOLUTE:
        if (found := _number(query.get(key))) is not None:
            return found
    return None


def _number(text: str | None) -> float | None:
    return float(text) if text and text.isascii() and text.isdigit() and len(text) < 16 else None


def parse_date(text: str | None) -> float | None:
    """An HTTP date as seconds since 1970."""
    if text is None:
        return None
    from email.utils import parsedate_to_datetime  # 20 ms, on the way of a start only if a registry is busy

    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
