from collections.abc import Sequence
from typing import Any, Self, final

from typing_extensions import Buffer

SPAN: int

@final
class Fetcher:
    """Byte ranges of blobs from HTTP servers, see cext/src/os_fetch.h. Times in seconds, 0 for the default."""

    def __init__(
        self,
        *,
        authorities: str | None = None,
        log: int = -1,
        news: int = -1,
        flights: int = 0,
        connect_timeout: float = 0,
        stall_timeout: float = 0,
        backoff: float = 0,
        backoff_max: float = 0,
        hedge_floor: float = 0,
    ) -> None: ...
    def set_source(
        self,
        number: int,
        url: str,
        /,
        *,
        headers: Sequence[str] = (),
        lifetime: float = 0,
        authorities: str | None = None,
        proxy: str | None = None,
        no_proxy: str | None = None,
    ) -> None: ...
    def set_origin(self, number: int, sources: Sequence[int], /) -> None: ...
    def news(self) -> list[tuple[int, int]]: ...
    def read(
        self,
        origin: int,
        digest: Buffer,
        blob_size: int,
        offset: int,
        length: int,
        /,
        *,
        timeout: float = 120,
        prefetch: bool = False,
        rejected: int = 0,
        avoid: int = 0,
    ) -> tuple[bytes, int, int]: ...
    def ping(self, timeout: float, /) -> bool: ...
    def serve(self, sock: int, memory: int, /) -> None: ...
    def statistics(self) -> dict[str, Any]: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

@final
class Getter:
    """Whole answers over HTTP for a client without an event loop, see cext/src/os_fetch_get.h. Times in seconds."""

    def __init__(self, *, authorities: str | None = None, connect: float = 10, silence: float = 60) -> None: ...
    def start(
        self,
        url: str,
        /,
        *,
        headers: Sequence[str] = (),
        body: bytes | None = None,
        head: bool = False,
        authorities: str | None = None,
        proxy: str | None = None,
        no_proxy: str | None = None,
    ) -> int: ...
    def look(self, number: int, /) -> tuple[int, str, int, bytes, str]: ...
    def take(self, number: int, /) -> bytes: ...
    def drop(self, number: int, /) -> None: ...
    def wait(self, seconds: float, /) -> None: ...
    def wake(self) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

def content_range(value: Buffer, /) -> tuple[int, int, int] | None: ...
def retry_after(value: Buffer, /) -> int: ...
def redirect(url: str, location: str, /) -> tuple[str, bool]: ...
def park_getters() -> None: ...
def unpark_getters() -> None: ...
