"""Whatever a registry, or whoever sits between, answers: the login is seen by the registry alone.

Each case is a class of leak that was a CVE of another client; the attacker's server records all that reaches it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cext.errors import OnesecError
from registry.auth import Credential
from registry.client import Repository
from registry.layout import Layout
from registry.model import OCI_CONFIG, OCI_MANIFEST, PACK, Descriptor, Digest, Manifest, dump_json
from registry.origin import HostSettings
from registry.upload import Uploader
from tests.support.fake_registry import Answer, FakeRegistry, Fault
from tests.support.registry_world import DATA, World

PASSWORD = "canary-3f9a"
IDENTITY = "identity-77c1"
BASIC = base64.b64encode(f"me:{PASSWORD}".encode()).decode()


@pytest.fixture
def attacker() -> Iterator[FakeRegistry]:
    with FakeRegistry(users={"me": PASSWORD}) as server:
        yield server


@pytest.fixture(params=["trio", "thin"])
def road(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["bearer", "basic", "identity"])
def world(request: pytest.FixtureRequest, attacker: FakeRegistry, road: str) -> Iterator[World]:
    """A registry that wants a login; plain http is allowed to the attacker, so that no other rule saves us."""
    with FakeRegistry(users={"me": PASSWORD}, basic=request.param == "basic") as registry:
        identity = request.param == "identity"
        login = Credential("", "", IDENTITY) if identity else Credential("me", PASSWORD)
        yield World(
            registry, login=login, others={elsewhere(attacker): HostSettings(plain_http=True)}, thin=road == "thin"
        )


def elsewhere(attacker: FakeRegistry) -> str:
    """Its host under a name that is of another site than the registry's address."""
    return attacker.host.replace("127.0.0.1", "localhost")


Attack = Callable[[World, str], list[Fault]]


def redirects(status: int, url: str = "http://{attacker}/steal") -> Attack:
    def faults(world: World, attacker: str) -> list[Fault]:
        where = {"Location": url.format(attacker=attacker, registry=world.registry.host)}

        def act(answer: Answer) -> bool | None:
            if "authorization" not in answer.seen.headers:
                return True  # the handshake first: the login has to be at hand
            answer.send(status, where)
            return None

        return [Fault("GET", "/v2/", act) for _ in range(8)]

    return faults


def challenges(line: str) -> Attack:
    def faults(world: World, attacker: str) -> list[Fault]:
        challenge = {"WWW-Authenticate": line.format(attacker=attacker, registry=world.registry.host)}
        return [Fault("GET", "/v2/", lambda answer: answer.send(401, challenge)) for _ in range(8)]

    return faults


ATTACKS: dict[str, Attack] = {
    "301 to another host": redirects(301),
    "302 to another host": redirects(302),
    "303 to another host": redirects(303),
    "307 to another host": redirects(307),
    "308 to another host": redirects(308),
    "the same name, another port": redirects(307, "http://127.0.0.1:1/steal"),
    "a scheme-relative redirect": redirects(307, "//{attacker}/steal"),
    "a user name that looks like the registry": redirects(307, "http://{registry}@{attacker}/steal"),
    "a backslash": redirects(307, "http://{registry}\\@{attacker}/steal"),
    "the registry's name as a sub-domain": redirects(307, "http://{registry}.{attacker}/steal"),
    "a realm elsewhere (CVE-2020-15157)": challenges('Bearer realm="http://{attacker}/token",service="fake"'),
    "a realm elsewhere, with the registry as user name": challenges(
        'Bearer realm="http://{registry}@{attacker}/token"'
    ),
    "a realm on the cloud's metadata address": challenges('Bearer realm="http://169.254.169.254/token"'),
    "a realm in another scheme": challenges('Bearer realm="ftp://{attacker}/token"'),
    "two challenges, the second one elsewhere": challenges('Bearer realm="http://{attacker}/t", Basic realm="x"'),
    "a header in the realm": challenges('Bearer realm="http://{registry}/token", service="a\x0bHost: {attacker}"'),
}


def saw_a_secret(server: FakeRegistry) -> list[str]:
    secrets = (PASSWORD, BASIC, IDENTITY, "token-")
    found = []
    for one in server.requests:
        text = json.dumps([one.path, dict(one.headers), one.body.decode("latin-1")])
        found += [secret for secret in secrets if secret in text]
    return found


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_answer_of_the_registry_sends_no_login_elsewhere(world: World, attacker: FakeRegistry, attack: str) -> None:
    blob = world.blob()
    world.registry.faults += ATTACKS[attack](world, elsewhere(attacker))
    count = len(world.registry.faults)
    with suppress(OnesecError):
        world.call(lambda repository: repository.read_range(blob, 0, 10))
    assert len(world.registry.faults) < count  # the attack took place
    assert saw_a_secret(attacker) == []


def test_a_manifest_that_names_urls_sends_nobody_there(world: World, attacker: FakeRegistry) -> None:
    """CVE-2020-15157: `urls` of a descriptor."""
    digest = world.registry.put_blob("me/app", b"{}")
    config = {**Descriptor(OCI_CONFIG, Digest(digest), 2).to_json(), "urls": [f"http://{elsewhere(attacker)}/steal"]}
    raw = dump_json({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []})
    world.registry.put_manifest("me/app", "v1", raw)

    async def work(repository: Repository) -> bytes:
        manifest: Manifest = await repository.resolve()
        return await repository.read_range(manifest.config, 0, 2)

    with suppress(OnesecError):  # the identity token is no password of the fake registry
        assert world.call(work) == b"{}"
    assert attacker.requests == []


@pytest.mark.parametrize("road", ["trio"])  # a start uploads nothing
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_an_upload_that_is_sent_away_takes_no_login_along(
    world: World, attacker: FakeRegistry, tmp_path: Path, method: str
) -> None:
    layout = Layout.open(tmp_path / "root")
    blob = layout.put(DATA, PACK)
    where = {"Location": f"http://{elsewhere(attacker)}/v2/me/app/blobs/uploads/9?a=1"}
    if method == "PATCH":
        world.registry.faults.append(Fault("PUT", "/uploads/", lambda answer: answer.send(413)))

    def act(answer: Answer) -> bool | None:
        if "authorization" not in answer.seen.headers:
            world.registry.faults.append(Fault(method, "/uploads/", act))
            return True
        answer.send({"POST": 202, "PUT": 307, "PATCH": 202}[method], where)
        return None

    world.registry.faults.append(Fault(method, "/uploads/", act))
    with suppress(OnesecError):
        world.call(lambda one: Uploader(one, layout, chunk=300_000).send_blob(blob, lambda size: None), push=True)
    assert saw_a_secret(attacker) == []


def test_who_is_sent_away_and_back_carries_no_login(world: World, attacker: FakeRegistry) -> None:
    blob = world.blob()
    back = {"Location": f"http://{world.registry.host}/v2/victim/blobs/{blob.digest}"}
    attacker.faults.append(Fault("GET", "/steal", lambda answer: answer.send(307, back)))
    world.registry.faults += redirects(307)(world, elsewhere(attacker))[:2]
    with suppress(OnesecError):
        world.call(lambda repository: repository.read_range(blob, 0, 10))
    assert [one for one in world.registry.seen("GET", "/victim/") if "authorization" in one.headers] == []


def test_errors_show_no_secret(world: World) -> None:
    blob = world.blob()
    said = json.dumps({"errors": [{"code": "X", "message": "no"}]}).encode()
    world.registry.faults += [Fault("GET", "/v2/", lambda answer: answer.send(400, {}, said)) for _ in range(3)]
    with pytest.raises(OnesecError) as caught:
        world.call(lambda repository: repository.read_range(blob, 0, 10))
    chain: list[str] = []
    error: BaseException | None = caught.value
    while error is not None:
        chain.append(f"{error!r} {error}")
        error = error.__cause__ or error.__context__
    assert not [secret for secret in (PASSWORD, BASIC, IDENTITY) if secret in " ".join(chain)]
