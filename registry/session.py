"""Requests to one registry on behalf of one repository: login, redirects and retries around a transport.

The one place where a secret meets a URL: `_attempt` adds the login only where the URL's origin is the registry's own,
and it looks anew after every redirect; who has left that origin once gets no login any more.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext

from cext.record import Record, replace
from registry.auth import ANSWER_MAX, Ask, Authenticator, Credential, Scope, Send
from registry.errors import (
    BadAnswerError,
    BadDocumentError,
    DeniedError,
    NotThereError,
    RefusedError,
    RegistryError,
    UnreachableError,
)
from registry.model import parse_json
from registry.origin import Hosts, api_url, origin_of, redirected
from registry.pace import Pace
from registry.request import Body, Request, Response, Transport
from registry.retry import RETRIED, RetryPolicy, parse_retry_after

HOPS_MAX = 5
_ASKS_MAX = 3
_WORDS_MAX = 64 << 10  # bytes read of an error's body
_REDIRECTS = (301, 302, 303, 307, 308)
_DOCUMENT_SECONDS = 120.0


def random_share() -> float:
    """0 to 1."""
    return int.from_bytes(os.urandom(4), "little") / (1 << 32)


def _trio_pace() -> Pace:
    from registry.trio_pace import TrioPace

    return TrioPace()


class Surroundings(Record):
    """What the client needs of the world; tests bring their own. clock: seconds, monotonic; login: blocks. sleep: in
    place of the pace's. pace: None: trio's, which is imported only then.
    """

    transport: Transport
    hosts: Hosts
    login: Callable[[str, str], Credential | None]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] | None = None
    jitter: Callable[[], float] = random_share
    retry: RetryPolicy = RetryPolicy()
    pace: Pace | None = None


class Answer(Record):
    """response: its body unread. url, headers: what was sent last. expires_at: until when the login in it is good."""

    unshown = ("headers",)

    response: Response
    url: str
    headers: Mapping[str, str]
    expires_at: float


class Session:
    """host: as the user wrote it. repository: whose login is looked up."""

    def __init__(self, host: str, repository: str, world: Surroundings) -> None:
        self.host = host
        self.base = f"{api_url(host, world.hosts)}/v2/"
        self._repository = repository
        self._world = world
        self._origin = origin_of(self.base, host)
        self.pace = world.pace or _trio_pace()
        self._lock = self.pace.lock()  # around the login's look-up and each Ask
        self._authenticator: Authenticator | None = None  # guarded by _lock until it is there
        self.answered = False  # whether the host ever did

    async def login(self, probe: str, scope: Scope) -> Send:
        """What requests of the scope are sent with from now on. probe: a small one, below `/v2/`; the host's answer to
        it says what it wants to see.
        """
        async with self.request("GET", probe, scope, headers={"range": "bytes=0-0"}, expect=(200, 206)):
            pass
        return await self.authorization(scope)

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        scope: Scope,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | Body | None = None,
        expect: tuple[int, ...] = (200,),
        retry: bool = True,
    ) -> AsyncIterator[Answer]:
        """An answer with one of the expected statuses, of url or where it led to. url: absolute, or below `/v2/`.

        Only GET and HEAD follow redirects. Raises RegistryError for every other status; retries what `RETRIED` lists
        and what broke before the answer began; retry=False for bodies of which a part may have arrived.
        """
        request = Request(method, url if "://" in url else self.base + url, headers or {}, body)
        failures = 0
        while True:
            async with AsyncExitStack() as stack:
                try:
                    answer = await self._answer(request, scope, stack, expect)
                except RegistryError as error:
                    failed = error
                else:
                    yield answer
                    return
            await self.pause((failures := failures + 1), failed, once=not retry)

    async def pause(self, failures: int, error: RegistryError, *, once: bool = False) -> None:
        """Waits for the next attempt after so many failures, or raises error."""
        # A host that has never answered is rather misspelt than ill.
        pause = None if once or (failures > 1 and not self.answered) else self._pause(failures, error)
        if pause is None:
            raise error
        await (self._world.sleep or self.pace.sleep)(pause)

    def _pause(self, failures: int, error: RegistryError) -> float | None:
        return self._world.retry.pause(failures, error, self._world.jitter())

    async def document(
        self, url: str, scope: Scope, limit: int, *, accept: str, expect: tuple[int, ...] = (200,)
    ) -> tuple[bytes, Answer]:
        """The whole body of a small GET."""
        failures = 0
        while True:
            async with self.request("GET", url, scope, headers={"accept": accept}, expect=expect) as answer:
                try:
                    with self._deadline():
                        return await read(answer.response, limit, self.host), answer
                except RegistryError as error:
                    broken = error
            await self.pause((failures := failures + 1), broken)

    # ------------------------------------------------------------------

    async def _answer(self, request: Request, scope: Scope, stack: AsyncExitStack, expect: tuple[int, ...]) -> Answer:
        with self._deadline() if request.body is None else nullcontext():
            answer = await self._attempt(request, scope, stack)
            if answer.response.status not in expect:
                raise await self._refusal(answer)
            return answer

    async def _attempt(self, request: Request, scope: Scope, stack: AsyncExitStack) -> Answer:
        """One answer that is neither a 401 that we can do something about nor a redirect that we follow."""
        hops = 0
        own = True
        while True:
            # Who was sent away and comes back has been given the address by a stranger.
            own = own and origin_of(request.url, self.host) == self._origin
            sent = await self.authorization(scope) if own else Send(None)
            headers = dict(request.headers)
            if sent.authorization is not None:
                headers["authorization"] = sent.authorization
            opened = AsyncExitStack()
            async with opened:
                response = await opened.enter_async_context(
                    self._world.transport.send(replace(request, headers=headers))
                )
                self.answered = True
                if response.status == 401 and own:
                    assert self._authenticator is not None
                    self._authenticator.challenged(scope, sent, response.lines("www-authenticate"))
                    continue
                if response.status in _REDIRECTS and request.method in ("GET", "HEAD"):
                    location = response.header("location")
                    if location is None:
                        raise BadAnswerError(self.host, "redirects nowhere")
                    if (hops := hops + 1) > HOPS_MAX:
                        raise BadAnswerError(self.host, f"redirects more than {HOPS_MAX} times")
                    request = replace(request, url=redirected(request.url, location, self._world.hosts, self.host))
                    continue
                stack.push_async_exit(opened.pop_all())
                return Answer(response, request.url, headers, sent.expires_at)

    async def authorization(self, scope: Scope) -> Send:
        """What a request of the scope is sent with; asks for a token if there is none that is good."""
        async with self._lock:
            if self._authenticator is None:
                login = await self.pace.in_thread(self._world.login, self.host, self._repository)
                self._authenticator = Authenticator(self.host, self._origin, self._world.hosts, login)
            for _ in range(_ASKS_MAX + 1):
                step = self._authenticator.step(scope, self._world.clock())
                if isinstance(step, Send):
                    return step
                await self._ask(step)
        raise BadAnswerError(self.host, "its tokens end before they can be used")

    async def _ask(self, ask: Ask) -> None:
        assert self._authenticator is not None
        request = Request("GET" if ask.form is None else "POST", ask.url, ask.headers, ask.form)
        failures = 0
        while True:
            try:
                with self._deadline():
                    async with self._world.transport.send(request) as response:
                        if response.status in RETRIED:
                            raise RefusedError(
                                self.host,
                                response.status,
                                f"token from {ask.key[0]}: got status {response.status}",
                                retryable=True,
                                retry_after=parse_retry_after(response.header("retry-after"), response.header("date")),
                            )
                        body = await read(response, ANSWER_MAX, self.host)
                self._authenticator.answered(ask, response.status, body)
                return
            except RegistryError as error:
                await self.pause((failures := failures + 1), error)

    @contextmanager
    def _deadline(self) -> Iterator[None]:
        """For what is small: the transport bounds each silence, this the sum of a server's drops."""
        try:
            with self.pace.deadline(_DOCUMENT_SECONDS):
                yield
        except TimeoutError as error:
            raise UnreachableError(self.host, f"did not finish its answer within {_DOCUMENT_SECONDS:.0f} s") from error

    async def _refusal(self, answer: Answer) -> RegistryError:
        """What an unexpected answer means."""
        response = answer.response
        try:
            body = await read(response, _WORDS_MAX, self.host)
        except RegistryError:
            body = b""
        at = origin_of(answer.url, self.host)
        return explain(self.host, response, body, where="" if at == self._origin else f" (sent on to {at.netloc})")


def explain(host: str, response: Response, body: bytes, *, where: str = "") -> RegistryError:
    """A status that was not expected, in words."""
    status = response.status
    codes, words = parse_errors(body)
    who = host + where
    if status in (401, 403):
        return DeniedError(who, f"access denied: {words or f'status {status}'}", hint=f"`podman login {host}`")
    if status == 404 and (codes or not body):
        return NotThereError(who, words or "no such thing")
    after = parse_retry_after(response.header("retry-after"), response.header("date"))
    retryable = status in RETRIED
    kind = (response.header("content-type") or "nothing").partition(";")[0][:100].lower()
    if not codes and (kind == "text/html" or status == 404):
        reason = f"does not answer like a registry: got status {status} and {kind}"
        return BadAnswerError(who, reason, retryable=retryable, retry_after=after)
    said = f": {words}" if words else ""
    asked = f", asks to wait {after:.0f} s" if after else ""
    return RefusedError(who, status, f"got status {status}{said}{asked}", retryable=retryable, retry_after=after)


def parse_errors(body: bytes) -> tuple[tuple[str, ...], str]:
    """(codes, words) of the distribution API's error document; nothing where it is none."""
    try:
        document = parse_json(body, "errors")
    except BadDocumentError:
        return (), ""
    errors = document.get("errors") if isinstance(document, dict) else None
    found = [one for one in errors or [] if isinstance(one, dict)] if isinstance(errors, list) else []
    codes = tuple(code for one in found if isinstance(code := one.get("code"), str))
    words = [str(one.get("message") or one.get("code") or "") for one in found[:3]]
    return codes, "; ".join(word for word in words if word)[:300]


async def read(response: Response, limit: int, who: str) -> bytes:
    """A body of at most limit bytes, as long as it says that it is."""
    length = parse_length(response.header("content-length"), who)
    if length is not None and length > limit:
        raise BadAnswerError(who, f"answer: got {length} bytes, want at most {limit}")
    pieces: list[bytes] = []
    size = 0
    async for piece in response.pieces():
        size += len(piece)
        if size > limit:
            raise BadAnswerError(who, f"answer: got more than {limit} bytes")
        pieces.append(piece)
    if length is not None and size != length:
        raise BadAnswerError(who, f"answer: got {size} of {length} bytes", retryable=True)
    return b"".join(pieces)


def parse_length(text: str | None, who: str) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise BadAnswerError(who, f"content-length: got {text[:50]!r}, want a number")
    return int(text)
