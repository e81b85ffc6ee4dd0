"""The handshake as a machine: no network, time is a number."""

from __future__ import annotations

import base64
import json
from math import inf
from urllib.parse import parse_qs, urlsplit

import pytest

from registry.auth import (
    ANSWER_MAX,
    CHALLENGE_MAX,
    Ask,
    Authenticator,
    Credential,
    Scope,
    Send,
    parse_challenges,
    parse_token,
)
from registry.errors import BadAnswerError, DeniedError
from registry.origin import HostSettings, Origin

REGISTRY = Origin("https", "registry.example.com", 443)
LOGIN = Credential("me", "secret")
PULL = Scope("me/app")
BEARER = 'Bearer realm="https://auth.example.com/token",service="svc",scope="repository:me/app:pull"'


def machine(credential: Credential | None = LOGIN) -> Authenticator:
    return Authenticator("registry.example.com", REGISTRY, {}, credential)


def learn(one: Authenticator, scope: Scope = PULL, *, challenge: str = BEARER, now: float = 0.0) -> Ask:
    """The first request is refused; what is asked of the realm then."""
    sent = one.step(scope, now)
    assert isinstance(sent, Send)
    assert sent == Send(None)
    one.challenged(scope, sent, [challenge])
    asked = one.step(scope, now)
    assert isinstance(asked, Ask)
    return asked


def token(value: str = "t1", **more: object) -> bytes:
    return json.dumps({"token": value, **more}).encode()


def test_the_first_request_carries_nothing() -> None:
    assert machine().step(PULL, 0) == Send(None)


def test_a_bearer_challenge_leads_to_the_realm_and_the_token_to_the_registry() -> None:
    one = machine()
    asked = learn(one)
    url = urlsplit(asked.url)
    assert (url.scheme, url.netloc, url.path) == ("https", "auth.example.com", "/token")
    assert parse_qs(url.query) == {"service": ["svc"], "scope": ["repository:me/app:pull"], "account": ["me"]}
    assert asked.headers["authorization"] == "Basic " + base64.b64encode(b"me:secret").decode()
    one.answered(asked, 200, token(expires_in=300))
    sent = one.step(PULL, 1)
    assert isinstance(sent, Send)
    assert (sent.authorization, sent.expires_at) == ("Bearer t1", 300)


def test_without_a_login_the_realm_is_asked_for_an_anonymous_token() -> None:
    one = machine(None)
    asked = learn(one)
    assert "authorization" not in asked.headers
    one.answered(asked, 200, json.dumps({"access_token": "anonymous"}).encode())
    sent = one.step(PULL, 1)
    assert isinstance(sent, Send)
    assert sent.authorization == "Bearer anonymous"


def test_a_token_is_renewed_before_it_ends() -> None:
    one = machine()
    one.answered(learn(one), 200, token(expires_in=400))
    assert isinstance(one.step(PULL, 339), Send)
    assert isinstance(one.step(PULL, 340), Ask)


def test_a_token_without_a_lifetime_lives_for_a_minute() -> None:
    one = machine()
    one.answered(learn(one), 200, token())
    assert isinstance(one.step(PULL, 44), Send)
    assert isinstance(one.step(PULL, 45), Ask)


@pytest.mark.parametrize("lifetime", [0, -5, "soon", True, None, [], 1e300])
def test_a_lifetime_that_makes_no_sense_is_bounded(lifetime: object) -> None:
    one = machine()
    one.answered(learn(one), 200, token(expires_in=lifetime))
    assert isinstance(one.step(PULL, 1), Send)
    assert isinstance(one.step(PULL, 25 * 3600), Ask)


def test_a_slow_answer_takes_its_time_from_the_token() -> None:
    one = machine()
    asked = learn(one, now=100)
    one.answered(asked, 200, token(expires_in=60))
    sent = one.step(PULL, 130)
    assert isinstance(sent, Send)
    assert sent.expires_at == 160


def test_each_scope_has_its_own_token() -> None:
    one = machine()
    one.answered(learn(one), 200, token())
    push = Scope("me/app", push=True, mounts=("me/base",))
    asked = one.step(push, 1)
    assert isinstance(asked, Ask)
    wanted = parse_qs(urlsplit(asked.url).query)["scope"]
    assert wanted == ["repository:me/app:pull,push", "repository:me/base:pull"]


def test_a_token_that_was_revoked_is_renewed_once_and_then_it_is_a_denial() -> None:
    one = machine()
    one.answered(learn(one), 200, token("t1"))
    one.step(PULL, 1)
    old = one.step(PULL, 2)
    assert isinstance(old, Send)
    one.challenged(PULL, old, [BEARER])
    asked = one.step(PULL, 3)
    assert isinstance(asked, Ask)
    one.answered(asked, 200, token("t2"))
    new = one.step(PULL, 4)
    assert isinstance(new, Send)
    assert new.authorization == "Bearer t2"
    with pytest.raises(DeniedError, match="me may not pull me/app"):
        one.challenged(PULL, new, [BEARER])


def test_a_late_401_does_not_throw_away_the_token_that_replaced_the_refused_one() -> None:
    one = machine()
    one.answered(learn(one), 200, token("t1"))
    one.step(PULL, 1)
    old = one.step(PULL, 1)
    assert isinstance(old, Send)
    one.challenged(PULL, old, [BEARER])
    asked = one.step(PULL, 2)
    assert isinstance(asked, Ask)
    one.answered(asked, 200, token("t2"))
    one.challenged(PULL, old, [BEARER])  # of a request that was sent earlier
    current = one.step(PULL, 3)
    assert isinstance(current, Send)
    assert current.authorization == "Bearer t2"


def test_basic_sends_the_password_and_a_second_401_is_final() -> None:
    one = machine()
    one.challenged(PULL, Send(None), ['Basic realm="Registry Realm"'])
    sent = one.step(PULL, 0)
    assert isinstance(sent, Send)
    assert sent.authorization == "Basic " + base64.b64encode(b"me:secret").decode()
    assert sent.expires_at == inf
    with pytest.raises(DeniedError, match="wrong user name or password") as caught:
        one.challenged(PULL, sent, ['Basic realm="Registry Realm"'])
    assert caught.value.hint == "`podman login registry.example.com` or `docker login registry.example.com`"


def test_bearer_is_preferred_to_basic() -> None:
    one = machine()
    one.challenged(PULL, Send(None), ['Basic realm="x", ' + BEARER])
    assert isinstance(one.step(PULL, 0), Ask)


def test_without_a_login_a_basic_challenge_says_so() -> None:
    with pytest.raises(DeniedError, match="wants a login for me/app"):
        machine(None).challenged(PULL, Send(None), ["Basic"])


def test_an_identity_token_is_exchanged_in_the_body_and_never_in_a_url() -> None:
    one = machine(Credential(identity_token="refresh/me"))
    asked = learn(one)
    assert asked.url == "https://auth.example.com/token"
    assert asked.form is not None
    assert parse_qs(asked.form.decode()) == {
        "grant_type": ["refresh_token"],
        "service": ["svc"],
        "client_id": ["onesec"],
        "scope": ["repository:me/app:pull"],
        "refresh_token": ["refresh/me"],
    }
    assert "authorization" not in asked.headers


def test_a_registry_token_is_sent_as_it_is() -> None:
    one = machine(Credential(registry_token="ready"))
    one.challenged(PULL, Send(None), [BEARER])
    sent = one.step(PULL, 0)
    assert isinstance(sent, Send)
    assert sent.authorization == "Bearer ready"
    with pytest.raises(DeniedError):
        one.challenged(PULL, sent, [BEARER])


def test_the_realm_may_have_a_query_of_its_own() -> None:
    challenge = 'Bearer realm="https://registry.example.com/t?a=1"'
    assert learn(machine(), challenge=challenge).url.startswith("https://registry.example.com/t?a=1&scope=")


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_realm_that_refuses_the_password_is_a_denial(status: int) -> None:
    one = machine()
    with pytest.raises(DeniedError, match="wrong user name or password"):
        one.answered(learn(one), status, b"")


def test_a_realm_that_fails_can_be_asked_again() -> None:
    one = machine()
    with pytest.raises(BadAnswerError) as caught:
        one.answered(learn(one), 502, b"")
    assert caught.value.retryable


def test_a_registry_that_renames_repositories_gets_its_name_into_the_token() -> None:
    challenge = BEARER.replace("me/app:pull", "tenant/me/app:pull")
    asked = learn(machine(), challenge=challenge)
    assert parse_qs(urlsplit(asked.url).query)["scope"] == ["repository:me/app:pull", "repository:tenant/me/app:pull"]


@pytest.mark.parametrize(
    "scope", ["repository:other:pull,push", "repository:other:*", "registry:catalog:*", "a b", "repository:x:delete"]
)
def test_a_challenge_never_widens_a_pull(scope: str) -> None:
    challenge = BEARER.replace("repository:me/app:pull", scope)
    asked = learn(machine(), challenge=challenge)
    assert parse_qs(urlsplit(asked.url).query)["scope"] == ["repository:me/app:pull"]


def test_secrets_are_in_no_repr() -> None:
    one = machine(Credential("me", "secret", "identity", "registry"))
    asked = learn(machine())
    one.challenged(PULL, Send(None), ["Basic"])
    shown = f"{Credential('me', 'secret', 'identity', 'registry')!r} {asked!r} {one.step(PULL, 0)!r}"
    encoded = base64.b64encode(b"me:secret").decode()
    assert not [word for word in ("secret", "identity'", "registry'", encoded) if word in shown]


# ---------------------------------------------------------------------- grammar


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["Basic"], [("basic", {})]),
        (['Basic realm="a, b=\\"c\\""'], [("basic", {"realm": 'a, b="c"'})]),
        (["Bearer realm=x,service=y"], [("bearer", {"realm": "x", "service": "y"})]),
        (['bEaReR REALM = "x" , , a=b'], [("bearer", {"realm": "x", "a": "b"})]),
        (["Negotiate abc==, Basic realm=x"], [("negotiate", {}), ("basic", {"realm": "x"})]),
        (["Basic realm=x", "Bearer realm=y"], [("basic", {"realm": "x"}), ("bearer", {"realm": "y"})]),
        ([""], []),
        ([" , ,"], []),
    ],
)
def test_challenges_are_parsed(lines: list[str], found: list[tuple[str, dict[str, str]]]) -> None:
    assert [(one.scheme, dict(one.parameters)) for one in parse_challenges(lines, "host")] == found


@pytest.mark.parametrize(
    "line",
    [
        'Bearer realm="a',
        'Bearer realm="a\r\nX-Injected: 1"',
        'Bearer realm="a\0"',
        "Bearer realm=a, realm=b",
        "Bearer realm=a;service=b",
        "=",
        '"Bearer"',
        "Bearer " + ",".join(f"k{number}=v" for number in range(40)),
        "B\u00e9arer realm=x",
        "x" * (CHALLENGE_MAX + 1),
        "Bearer realm=" + "a" * (10 << 20),
    ],
    ids=range(11),
)
def test_a_challenge_that_breaks_the_grammar_is_refused(line: str) -> None:
    with pytest.raises(BadAnswerError, match="WWW-Authenticate"):
        parse_challenges([line], "host")


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(BadAnswerError, match="got ntlm, want bearer or basic"):
        machine().challenged(PULL, Send(None), ["NTLM"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"token": 7}',
        b'{"token": ""}',
        b'{"token": "a b"}',
        b'{"token": "a\\r\\nHost: evil"}',
        b'{"token": "\\u00e9"}',
        b'{"token": "a", "token": "b"}',
        b'{"token": "' + b"a" * 70_000 + b'"}',
        b"[" * 5000,
        b" " * (ANSWER_MAX + 1),
    ],
)
def test_an_answer_that_no_header_can_carry_is_refused(body: bytes) -> None:
    with pytest.raises(BadAnswerError, match="token answer"):
        parse_token(body, 0, "host")


# ---------------------------------------------------------------------- realms


@pytest.mark.parametrize(
    "realm",
    [
        "http://auth.example.com/token",
        "https://auth.elsewhere.org/token",
        "https://example.com.evil.net/token",
        "https://evil-example.com/token",
        "https://user:pass@auth.example.com/token",
        "https://auth.example.com/token#fragment",
        "https://127.0.0.1/token",
        "https://[::1]/token",
        "https://169.254.169.254/latest/meta-data",
        "https://10.0.0.1/token",
        "https://2130706433/token",
        "https://0x7f.1/token",
        "https://localhost/token",
        "https://metadata.google.internal/token",
        "https://intranet/token",
        "file:///etc/passwd",
        "ftp://auth.example.com/",
        "//auth.example.com/token",
        "token",
        "",
        "https://",
        "https://auth.example.com:99999/",
        "https://auth.example.com\\@evil.net/",
        "https://auth.example.com/ x",
        "https://auth.example.com/" + "a" * 9000,
    ],
)
def test_no_password_goes_to_a_realm_that_is_not_the_registrys(realm: str) -> None:
    one = machine()
    quoted = realm.replace("\\", "\\\\")
    with pytest.raises(BadAnswerError):
        one.challenged(PULL, Send(None), [f'Bearer realm="{quoted}",service="svc"'])
    assert one.step(PULL, 0) == Send(None)


@pytest.mark.parametrize(
    "realm", ["https://127.0.0.1/t", "https://169.254.169.254/", "https://intranet/t", "http://a.b/"]
)
def test_not_even_an_anonymous_request_goes_to_the_local_network(realm: str) -> None:
    with pytest.raises(BadAnswerError):
        machine(None).challenged(PULL, Send(None), [f'Bearer realm="{realm}"'])


def test_an_anonymous_token_may_come_from_another_public_site() -> None:
    asked = learn(machine(None), challenge='Bearer realm="https://auth.elsewhere.org/token"')
    assert asked.url.startswith("https://auth.elsewhere.org/token?")


def test_a_realm_that_the_user_configured_is_trusted() -> None:
    hosts = {
        "localhost:5000": HostSettings(plain_http=True, realms=("auth.elsewhere.org",)),
        "localhost:5001": HostSettings(plain_http=True),
    }
    for realm in ("http://localhost:5001/token", "https://auth.elsewhere.org/token", "http://localhost:5000/token"):
        one = Authenticator("localhost:5000", Origin("http", "localhost", 5000), hosts, LOGIN)
        assert learn(one, challenge=f'Bearer realm="{realm}"').url.startswith(realm)


def test_a_plain_registry_may_not_send_the_password_over_another_plain_host() -> None:
    one = Authenticator(
        "localhost:5000", Origin("http", "localhost", 5000), {"localhost:5000": HostSettings(plain_http=True)}, LOGIN
    )
    with pytest.raises(BadAnswerError, match="got http, want https"):
        one.challenged(PULL, Send(None), ['Bearer realm="http://localhost:5001/token"'])
