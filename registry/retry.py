"""When to try again: bounded, with growing pauses, and never sooner than a server asked. Pure."""

from __future__ import annotations

from cext.record import Record
from registry.errors import RegistryError
from registry.origin import parse_date

RETRIED = (408, 429, 500, 502, 503, 504)


class RetryPolicy(Record):
    """attempts: in all. first: seconds of the first pause, doubled each time. longest: that we wait when asked to."""

    attempts: int = 6
    first: float = 0.25
    longest: float = 60.0

    def pause(self, failures: int, error: RegistryError, jitter: float) -> float | None:
        """Seconds until the next attempt after so many failures, or None: give up. jitter: 0 to 1."""
        if not error.retryable or failures >= self.attempts:
            return None
        own = self.first * 2 ** (failures - 1) * (0.5 + jitter / 2)
        asked = error.retry_after or 0.0
        return None if asked > self.longest else max(asked, min(own, self.longest))


def parse_retry_after(text: str | None, date: str | None) -> float | None:
    """Seconds, from a Retry-After of either form. date: of the same answer, so that the server's clock may be wrong."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    until, since = parse_date(text), parse_date(date)
    return max(until - since, 0.0) if until is not None and since is not None else None
