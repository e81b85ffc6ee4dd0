"""Who we are to a registry, as a state machine without I/O: challenges, tokens, and renewing them before they end.

Before each request `step` says what to do: send it with this header, or first ask this realm for a token and hand the
answer to `answered`. A 401 goes to `challenged`, which either learns something new, after which `step` is asked again,
or raises DeniedError. No request gets more than three 401s: one to learn the scheme, one because a token was revoked
early, one that is final.

    unknown ──401──► Basic            every request carries the password
            ──401──► Bearer ──ask──► token per (realm, service, scope) ──renew_at──► ask again

Time comes in from outside (any monotonic clock), and so does every byte from the network: header values and answers are
hostile until they passed the grammar here.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from math import inf
from urllib.parse import urlencode

from cext.record import Record, replace
from registry.errors import BadAnswerError, BadDocumentError, DeniedError
from registry.model import parse_json
from registry.origin import Hosts, Origin, check_realm

CHALLENGE_MAX = 8 << 10  # bytes of all WWW-Authenticate lines of an answer
ANSWER_MAX = 256 << 10  # bytes of a token endpoint's answer
TOKEN_MAX = 64 << 10
LIFETIME_DEFAULT = 60.0  # seconds; what the token specification says where the answer does not
LIFETIME_MAX = 24 * 3600.0
_CHALLENGES_MAX = 16
_PARAMETERS_MAX = 16
_CLIENT = "onesec"

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf'({_NAME})[ \t]*=[ \t]*(?:"((?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[\t\x20-\x7e])*)"|({_NAME}))')
_SCHEME = re.compile(rf"({_NAME})(?:[ \t]+[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|$)))?(?=[ \t,]|$)")
_GAP = re.compile(r"[ \t,]*")
_BEARER = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_SCOPE = re.compile(r"repository:([a-z0-9][a-z0-9._/-]{0,254}):((?:pull|push|\*)(?:,(?:pull|push|\*))*)")
_SERVICE = re.compile(r"[\x20-\x7e]{0,1000}")


class Credential(Record):
    """A login: user name and password, or an identity token (exchanged for tokens), or a registry token (is one)."""

    unshown = ("password", "identity_token", "registry_token")

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""


class Challenge(Record):
    """scheme, names: lower case."""

    scheme: str
    parameters: Mapping[str, str]


class Scope(Record):
    """What a request needs. mounts: repositories that blobs are mounted from."""

    repository: str
    push: bool = False
    mounts: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        own = f"repository:{self.repository}:pull{',push' if self.push else ''}"
        return (own, *(f"repository:{name}:pull" for name in self.mounts))


class Send(Record):
    """Send the request. authorization: the header's value, or None. expires_at: until when it is good, on our clock."""

    unshown = ("authorization",)

    authorization: str | None
    expires_at: float = inf
    fresh: bool = False  # nothing has been sent with it yet: a 401 is about us, not about its age


class Ask(Record):
    """Send this to the realm, hand its answer to `answered`. asked_at: on our clock."""

    unshown = ("headers", "form")

    url: str
    headers: Mapping[str, str]
    form: bytes | None  # POST if there is one
    key: tuple[str, str, tuple[str, ...]]
    asked_at: float


class _Bearer(Record):
    realm: str
    service: str


class _Token(Record):
    unshown = ("value",)

    value: str
    expires_at: float
    renew_at: float
    used: bool = False


class Authenticator:
    """One registry's side of the conversation, for one login. host: its name in messages. Not thread safe; any number
    of requests may share it as long as only one of them carries out an `Ask` at a time.
    """

    def __init__(self, host: str, registry: Origin, hosts: Hosts, credential: Credential | None) -> None:
        self._host = host
        self._registry = registry
        self._hosts = hosts
        self._credential = credential
        self._scheme: _Bearer | str | None = None
        self._tokens: dict[tuple[str, str, tuple[str, ...]], _Token] = {}
        # What a challenge asked for beyond the scope that we would ask for: registries that rename repositories do.
        self._extra: dict[Scope, str] = {}

    def step(self, scope: Scope, now: float) -> Send | Ask:
        """What comes next for a request that needs scope."""
        if self._scheme is None:
            return Send(None)
        if self._scheme == "basic":
            return Send(self._basic())
        assert isinstance(self._scheme, _Bearer)
        if self._credential is not None and self._credential.registry_token:
            return Send(f"Bearer {self._credential.registry_token}", fresh=True)
        key = self._key(self._scheme, scope)
        token = self._tokens.get(key)
        if token is not None and now < (token.renew_at if token.used else token.expires_at):
            self._tokens[key] = replace(token, used=True)
            return Send(f"Bearer {token.value}", token.expires_at, fresh=not token.used)
        return self._ask(self._scheme, key, now)

    def challenged(self, scope: Scope, sent: Send, values: Sequence[str]) -> None:
        """An answer to a request of ours was 401. values: of its WWW-Authenticate lines. Raises DeniedError when there
        is nothing left to try.
        """
        who = self._host
        challenges = parse_challenges(values, who)
        bearer = next((one for one in challenges if one.scheme == "bearer"), None)
        if sent.authorization is not None:
            if bearer is not None and self._widen(bearer, scope):
                return
            if sent.fresh or not isinstance(self._scheme, _Bearer):
                raise self._denied(scope)
            key = self._key(self._scheme, scope)
            current = self._tokens.get(key)
            if current is not None and sent.authorization == f"Bearer {current.value}":
                del self._tokens[key]  # revoked early; another request may have renewed it in the meantime
            return
        if bearer is not None:
            self._learn(bearer)
            self._widen(bearer, scope)
        elif any(one.scheme == "basic" for one in challenges):
            if self._credential is None or not self._credential.password:
                raise self._denied(scope)
            self._scheme = "basic"
        else:
            names = ", ".join(one.scheme for one in challenges)[:100] or "nothing"
            raise BadAnswerError(who, f"wants a login: got {names}, want bearer or basic")

    def answered(self, ask: Ask, status: int, body: bytes) -> None:
        """The realm's answer to ask. body: at most ANSWER_MAX bytes and one. Raises DeniedError or BadAnswerError."""
        who = self._host
        if status in (400, 401, 403):
            if self._credential is None:
                raise DeniedError(who, "wants a login", hint=_login_hint(who))
            raise DeniedError(who, "the login is not accepted: wrong user name or password", hint=_login_hint(who))
        if status != 200:
            raise BadAnswerError(who, f"token from {ask.key[0]}: got status {status}", retryable=status >= 500)
        self._tokens[ask.key] = parse_token(body, ask.asked_at, who)

    # ------------------------------------------------------------------

    def _learn(self, challenge: Challenge) -> None:
        who = self._host
        realm = challenge.parameters.get("realm", "")
        service = challenge.parameters.get("service", "")
        if not _SERVICE.fullmatch(service):
            raise BadAnswerError(who, "service of its challenge: want at most 1000 printable characters")
        check_realm(self._registry, realm, self._hosts, who=who, secret=self._credential is not None)
        self._scheme = _Bearer(realm, service)

    def _widen(self, challenge: Challenge, scope: Scope) -> bool:
        """Notes a repository that the registry wants in the token beside the one that we named; whether it is news.

        Never more than the request needs: whoever owns the realm may know us under other repositories too.
        """
        wanted = challenge.parameters.get("scope", "")
        match = _SCOPE.fullmatch(wanted)
        if match is None or match[1] == scope.repository or match[1] in scope.mounts or scope in self._extra:
            return False
        if "*" in match[2] or (match[2] != "pull" and not scope.push):
            return False
        self._extra[scope] = wanted
        return True

    def _key(self, bearer: _Bearer, scope: Scope) -> tuple[str, str, tuple[str, ...]]:
        texts = scope.texts if scope not in self._extra else (*scope.texts, self._extra[scope])
        return bearer.realm, bearer.service, texts

    def _ask(self, bearer: _Bearer, key: tuple[str, str, tuple[str, ...]], now: float) -> Ask:
        _, service, scopes = key
        credential = self._credential
        if credential is not None and credential.identity_token:
            form = {
                "grant_type": "refresh_token",
                "service": service,
                "client_id": _CLIENT,
                "scope": " ".join(scopes),
                "refresh_token": credential.identity_token,
            }
            headers = {"content-type": "application/x-www-form-urlencoded"}
            return Ask(bearer.realm, headers, urlencode(form).encode(), key, now)
        query = [("service", service)] if service else []
        query += [("scope", scope) for scope in scopes]
        headers = {}
        if credential is not None:
            query.append(("account", credential.username))
            headers["authorization"] = self._basic()
        joint = "&" if "?" in bearer.realm else "?"
        return Ask(f"{bearer.realm}{joint}{urlencode(query)}", headers, None, key, now)

    def _basic(self) -> str:
        assert self._credential is not None
        pair = f"{self._credential.username}:{self._credential.password}"
        return "Basic " + base64.b64encode(pair.encode()).decode()

    def _denied(self, scope: Scope) -> DeniedError:
        who = self._host
        if self._credential is None:
            return DeniedError(who, f"wants a login for {scope.repository}", hint=_login_hint(who))
        if self._scheme == "basic":
            return DeniedError(who, "the login is not accepted: wrong user name or password", hint=_login_hint(who))
        name = self._credential.username or "this login"
        return DeniedError(who, f"{name} may not {'push to' if scope.push else 'pull'} {scope.repository}")


def _login_hint(host: str) -> str:
    return f"`podman login {host}` or `docker login {host}`"


def parse_challenges(values: Sequence[str], who: str) -> tuple[Challenge, ...]:
    """The challenges of all WWW-Authenticate lines of an answer (RFC 9110 §11.6.1)."""
    if sum(map(len, values)) > CHALLENGE_MAX:
        raise BadAnswerError(who, f"WWW-Authenticate: got {sum(map(len, values))} bytes, want at most {CHALLENGE_MAX}")
    return tuple(challenge for value in values for challenge in _parse_line(value, who))[:_CHALLENGES_MAX]


def _parse_line(line: str, who: str) -> list[Challenge]:
    found: list[tuple[str, dict[str, str]]] = []
    at = 0
    while (at := _skip(line, at)) < len(line):
        if found and (match := _PARAMETER.match(line, at)):
            parameters = found[-1][1]
            name = match[1].lower()
            if name in parameters or len(parameters) == _PARAMETERS_MAX:
                raise BadAnswerError(who, f"WWW-Authenticate: {name[:50]!r} twice, or too many parameters")
            parameters[name] = match[3] if match[2] is None else re.sub(r"\\(.)", r"\1", match[2])
        elif match := _SCHEME.match(line, at):
            found.append((match[1].lower(), {}))
        else:
            raise BadAnswerError(who, f"WWW-Authenticate: got {line[at : at + 50]!r}, want a challenge")
        at = match.end()
    return [Challenge(scheme, parameters) for scheme, parameters in found]


def _skip(line: str, at: int) -> int:
    match = _GAP.match(line, at)
    assert match is not None  # it matches nothing, too
    return match.end()


def parse_token(body: bytes, asked_at: float, who: str) -> _Token:
    """A token endpoint's answer. Its lifetime counts from when we asked, so that no clock but ours matters."""
    if len(body) > ANSWER_MAX:
        raise BadAnswerError(who, f"token answer: got more than {ANSWER_MAX} bytes")
    try:
        document = parse_json(body, f"token answer for {who}")
    except BadDocumentError as error:
        raise BadAnswerError(who, "token answer: not JSON") from error
    value = (document.get("token") or document.get("access_token")) if isinstance(document, dict) else None
    if not isinstance(value, str) or len(value) > TOKEN_MAX or not _BEARER.fullmatch(value):
        raise BadAnswerError(who, "token answer: has no token that a header can carry")
    lifetime = document.get("expires_in", LIFETIME_DEFAULT)
    if not isinstance(lifetime, int | float) or isinstance(lifetime, bool) or not lifetime > 0:
        lifetime = LIFETIME_DEFAULT
    lifetime = min(float(lifetime), LIFETIME_MAX)
    # A quarter of the lifetime, a minute at most, is kept for the request itself.
    return _Token(value, asked_at + lifetime, asked_at + lifetime - min(lifetime / 4, 60.0))
