"""The fetch engine: byte ranges of blobs from HTTP servers, checked for everything but their hash.

Not part of ``import cext``: this loads libcurl, which commands that fetch nothing need not wait for.
"""

from __future__ import annotations

import os

import cext  # noqa: F401  where a build with sanitizers is put first
from cext._fetch import SPAN, Fetcher, Getter, content_range, park_getters, redirect, retry_after, unpark_getters

__all__ = ["SPAN", "Fetcher", "Getter", "content_range", "redirect", "retry_after"]

os.register_at_fork(before=park_getters, after_in_parent=unpark_getters)
