"""Wheels made in memory, good ones and others."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

DATE = (2024, 2, 3, 4, 5, 6)


def record_row(name: str, data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(data)}\n"


def wheel_files(name: str, version: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """files with the .dist-info that belongs to them; what files has of it stands."""
    info = f"{name}-{version}.dist-info"
    whole = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **files,
    }
    rows = "".join(record_row(path, data) for path, data in whole.items())
    whole.setdefault(f"{info}/RECORD", (rows + f"{info}/RECORD,,\n").encode())
    return whole


def archive(
    files: Mapping[str, bytes], *, modes: Mapping[str, int] | None = None, method: int = zipfile.ZIP_DEFLATED
) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as made:
        for path, data in files.items():
            info = zipfile.ZipInfo(path, DATE)
            info.compress_type = method
            info.external_attr = (modes or {}).get(path, 0o100644) << 16
            made.writestr(info, data)
    return target.getvalue()


def wheel(name: str = "demo", version: str = "1.0", files: Mapping[str, bytes] | None = None) -> bytes:
    return archive(wheel_files(name, version, {"demo.py": b"VALUE = 1\n"} if files is None else files))


@contextmanager
def opened(data: bytes) -> Iterator[int]:
    fd = os.memfd_create("wheel")
    try:
        os.write(fd, data)
        yield fd
    finally:
        os.close(fd)
