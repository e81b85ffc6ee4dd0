"""Image names: the grammar of docker and OCI, strictly.

    [host[:port]/]component[/component…][:tag][@sha256:hex]

A first component with a dot or a colon in it, or `localhost`, is a host: such a name lives in a registry. Every other
name is local; nothing is ever completed to docker.io behind the user's back.
"""

from __future__ import annotations

import re

from cext.record import Record
from registry.errors import BadReferenceError
from registry.model import Digest

_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_HOST = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_NAME_MAX = 255  # distribution-spec: clients limit host and path together


class Reference(Record):
    """host: None for a local name. tag: `latest` where neither a tag nor a digest was given."""

    host: str | None
    path: str
    tag: str | None
    digest: Digest | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        rest, at, digest_text = text.partition("@")
        digest = None
        if at:
            try:
                digest = Digest(digest_text)
            except ValueError as error:
                raise BadReferenceError(text, str(error)) from error
        head, slash, last = rest.rpartition("/")
        last, colon, tag = last.partition(":")
        if colon and not _TAG.fullmatch(tag):
            raise BadReferenceError(
                text, f"tag {tag[:140]!r}: want letters, digits, _ . -, at most 128, not starting with . or -"
            )
        name = head + slash + last
        host = None
        first, slash, path = name.partition("/")
        if slash and ("." in first or ":" in first or first == "localhost"):
            host, name = first, path
            if not _HOST.fullmatch(host):
                raise BadReferenceError(text, f"host {host[:140]!r}: want a host name with an optional port")
        for component in name.split("/"):
            if not _COMPONENT.fullmatch(component):
                raise BadReferenceError(
                    text, f"component {component[:140]!r}: want lower-case letters and digits, parted by . _ __ or -"
                )
        if len(name) + len(host or "") > _NAME_MAX:
            raise BadReferenceError(
                text, f"name: got {len(name) + len(host or '')} characters, want at most {_NAME_MAX}"
            )
        return cls(host, name, tag if colon else (None if digest else "latest"), digest)

    @property
    def repository(self) -> str:
        return f"{self.host}/{self.path}" if self.host else self.path

    @property
    def name(self) -> str:
        """Repository and tag: what a tag in the layout is called. A digest is left out."""
        return f"{self.repository}:{self.tag or 'latest'}"

    def require_host(self) -> Reference:
        """This reference, if it is one of a registry."""
        if self.host is None:
            raise BadReferenceError(str(self), "names no registry: want HOST/NAME")
        return self

    @property
    def domain(self) -> str:
        """The trust domain of what comes from there: the registry and the first component of the path."""
        if self.host is None:
            return "local"
        first, slash, _ = self.path.partition("/")
        return f"{self.host}/{'library' if self.host == 'docker.io' and not slash else first}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")
