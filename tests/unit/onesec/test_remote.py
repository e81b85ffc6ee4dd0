"""The words of push and pull, what they load, and the configuration that they reach registries with."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from onesec.cli.main import main
from onesec.config import load
from onesec.places import hosts
from registry.model import EROFS, FORMAT, IMAGE, OCI_CONFIG, Descriptor, Digest, dump_json
from registry.origin import HostSettings
from tests.support.fake_registry import Answer, FakeRegistry, Fault
from tests.support.waiting import PATIENCE_S

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _own_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONESEC_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("ONESEC_CONFIG", str(tmp_path / "onesec.toml"))
    (tmp_path / "onesec.toml").write_text("")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pull", "app"], "names no registry: want HOST/NAME"),
        (["pull", "host.example/UPPER"], "lower-case letters"),
        (["pull", "host.example/app", "-t", "app@sha256:" + "0" * 64], "want a name without a digest"),
        (["push", "app", "other"], "names no registry"),
        (["push", "app"], "REMOTE"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_touched(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""
    assert not (tmp_path / "root").exists()


def test_loading_the_commands_loads_no_network() -> None:
    code = "import sys, onesec.cli.push, onesec.cli.pull; print(*sorted({'trio', 'httpx', 'ssl'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_configuration_becomes_the_clients_settings(tmp_path: Path) -> None:
    (tmp_path / "onesec.toml").write_text(
        '[registry."localhost:5000"]\nplain-http = true\nmirrors = ["m.example"]\n'
        '[registry."r.example"]\nca = "/ca.pem"\nrealms = ["login.example"]\n'
    )
    assert hosts(load({"ONESEC_CONFIG": str(tmp_path / "onesec.toml")})) == {
        "localhost:5000": HostSettings(plain_http=True, mirrors=("m.example",)),
        "r.example": HostSettings(ca="/ca.pem", realms=("login.example",)),
    }


def test_proxies_of_the_environment_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "onesec.toml").write_text('[registry."registry.invalid"]\nplain-http = true\n')
    with FakeRegistry() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
        assert main(["pull", "registry.invalid/me/app"]) == 1
        assert proxy.requests[0].path == "http://registry.invalid/v2/me/app/manifests/latest"
    assert "registry.invalid: has no image me/app:latest" in capsys.readouterr().err


def test_a_ca_that_is_no_certificate_is_told_by_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    (tmp_path / "onesec.toml").write_text(f'[registry."registry.invalid"]\nca = "{tmp_path}/ca.pem"\n')
    assert main(["pull", "registry.invalid/me/app"]) == 2
    assert f"ca {tmp_path}/ca.pem: not a file of PEM certificates" in capsys.readouterr().err


def test_an_interrupted_pull_says_nothing_leaves_nothing_and_has_status_130(tmp_path: Path) -> None:
    arrived, gone = threading.Event(), threading.Event()

    def stall(answer: Answer) -> None:
        arrived.set()
        gone.wait(PATIENCE_S)

    with FakeRegistry() as registry:
        (tmp_path / "onesec.toml").write_text(f'[registry."{registry.host}"]\nplain-http = true\n')
        config = registry.put_blob("me/app", b"{}")
        layer = registry.put_blob("me/app", b"x" * 1000)
        document = {
            "schemaVersion": 2,
            "artifactType": IMAGE,
            "annotations": {FORMAT: "1"},
            "config": Descriptor(OCI_CONFIG, Digest(config), 2).to_json(),
            "layers": [Descriptor(EROFS, Digest(layer), 1000).to_json()],
        }
        registry.put_manifest("me/app", "latest", dump_json(document))
        registry.faults.append(Fault("GET", layer, stall))
        words = [sys.executable, "-m", "onesec", "pull", f"{registry.host}/me/app"]
        with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as pull:
            assert arrived.wait(PATIENCE_S)
            pull.send_signal(signal.SIGINT)
            out, err = pull.communicate(timeout=PATIENCE_S)
        gone.set()
    assert (pull.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert [path.name for path in (tmp_path / "root/images/blobs").iterdir()] == ["sha256"]
