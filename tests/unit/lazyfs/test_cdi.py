from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cext.errors import CorruptError, LimitError
from lazyfs.cdi import SPEC_MAX, DeviceNode, Hook, Mount, Name, load, parse, parse_name
from lazyfs.errors import ContainerError
from tests.support.cdi import small_spec, whole_spec


def read(document: Any, path: str = "/etc/cdi/v.json") -> Any:
    return parse(json.dumps(document).encode(), path)


@pytest.mark.parametrize(
    "text", ["vendor.com/class=name", "v/c=0", "a.b-c_d/e.f-g=GPU-1:2.x", "nvidia.com/gpu=all", "vendor.com/x=0:1"]
)
def test_qualified_names_follow_the_grammar(text: str) -> None:
    assert str(parse_name(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "gpu", "0", "vendor.com=x", "/class=x", "vendor.com/=x", "vendor.com/class=", "vendor.com/class"),
        *("1vendor/class=x", "vendor.com/1class=x", "vendor.com./c=x", "vendor.com/c-=x", "v/c=-x", "v/c=x-"),
        *("v/c=a b", "v/c=a/b", "v/c=../x", "v/c=ä", "v\n/c=x", "v/c=x\n", "v/c=" + "x" * 254, "v/" + "c" * 64 + "=x"),
        *("/dev/nvidia0", "a/b/c=x"),
    ],
)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(ContainerError, match="device: got"):
        parse_name(text)


def test_every_field_of_a_spec_is_read() -> None:
    spec = read(whole_spec())
    assert (spec.kind, list(spec.devices)) == ("vendor.com/device", ["card1", "2nd"])
    assert spec.devices["card1"].nodes == (
        DeviceNode("/dev/card1", "/vendor/dev/card1", "c", 25, 25, 0o600, "rw", 1000, 1001),
        DeviceNode("/dev/card-render1", "/dev/card-render1", "c", 25, 26),
    )
    assert spec.devices["2nd"].groups == (44,)  # 0 is ignored
    assert spec.edits.environment == (("FOO", "SPEC"), ("BAR", "a=b"))
    assert spec.edits.nodes == (DeviceNode("/dev/vendorctl", "/dev/vendorctl", "b", 26, 0, permissions=""),)
    assert spec.edits.mounts == (
        Mount("/bin/vendor", "/usr/bin/vendor"),
        Mount("/usr/lib/libVendor.so.0", "/usr/lib/libVendor.so.0", options=("ro", "nosuid", "nodev", "bind")),
        Mount("tmpfs", "/tmp/data", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    )
    assert spec.edits.hooks == (
        Hook("createContainer", "/bin/true", ("vendor-hook", "x"), ("A=b",)),
        Hook("startContainer", "/usr/bin/ldconfig", timeout=7),
    )
    assert (spec.edits.groups, spec.edits.ignored) == ((44, 45), ("intelRdt",))


YAML = b"""---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
  - name: "0"
    containerEdits:
      deviceNodes:
        - path: /dev/nvidia0
          fileMode: 438
  - name: all
    containerEdits: {}
containerEdits:
  env: [NVIDIA_VISIBLE_DEVICES=void]
  hooks:
  - hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
    args:
    - nvidia-cdi-hook
    - update-ldcache
"""


def test_a_yaml_spec_says_what_a_json_spec_says() -> None:
    spec = parse(YAML, "/etc/cdi/nvidia.yaml", 1)
    same = {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": [
            {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0", "fileMode": 438}]}},
            {"name": "all"},
        ],
        "containerEdits": {
            "env": ["NVIDIA_VISIBLE_DEVICES=void"],
            "hooks": [
                {
                    "hookName": "createContainer",
                    "path": "/usr/bin/nvidia-cdi-hook",
                    "args": ["nvidia-cdi-hook", "update-ldcache"],
                }
            ],
        },
    }
    assert spec == parse(json.dumps(same).encode(), "/etc/cdi/nvidia.yaml", 1)  # JSON is YAML


@pytest.mark.parametrize("version", ["0.2.0", "0.9.0", "1.2.0", "2.0.0", "0.6", "", "0.6.0 ", "latest"])
def test_unknown_versions_are_refused(version: str) -> None:
    with pytest.raises(CorruptError, match="cdiVersion"):
        read(whole_spec(cdiVersion=version))


def test_a_leading_v_of_a_version_is_taken() -> None:
    assert read(whole_spec(cdiVersion="v1.0.0")).kind == "vendor.com/device"


@pytest.mark.parametrize(
    ("since", "before", "document"),
    [
        ("1.1.0", "1.0.0", small_spec(netDevices=[{"hostInterfaceName": "eth1", "name": "eth0"}])),
        ("1.1.0", "1.0.0", small_spec(intelRdt={"schemata": ["L3:0=f"]})),
        ("0.7.0", "0.6.0", small_spec(intelRdt={"closID": "c"})),
        ("0.7.0", "0.6.0", small_spec(additionalGids=[5])),
        ("0.7.0", "0.6.0", small_spec(additionalGIDs=[5])),
        ("0.6.0", "0.5.0", {**small_spec(), "annotations": {"a": "b"}}),
        ("0.6.0", "0.5.0", small_spec("vendor.com/gpu.x")),
        ("0.5.0", "0.4.0", small_spec(devices=("0",))),
        ("0.5.0", "0.4.0", small_spec(devices=("a",), deviceNodes=[{"path": "/dev/a", "hostPath": "/dev/b"}])),
        (
            "0.4.0",
            "0.3.0",
            small_spec(devices=("a",), mounts=[{"hostPath": "/a", "containerPath": "/a", "type": "bind"}]),
        ),
    ],
)
def test_a_field_needs_the_version_that_it_came_with(since: str, before: str, document: dict[str, Any]) -> None:
    assert read({**document, "cdiVersion": since})
    with pytest.raises(CorruptError, match=f"at least {since}"):
        read({**document, "cdiVersion": before})


def change(path: str, value: Any) -> dict[str, Any]:
    """The whole spec with one value changed, or added."""
    document: Any = whole_spec()
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = document
    for part in way:
        place = place[part]
    place[last] = value
    return dict(document)


NO_DEVICES: tuple[Any, ...] = ([], None, {}, "x", [{}], [5])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(("kind", value) for value in ("vendor.com", "vendor.com/a/b", "/x", "x/", "1/x", 5, None)),
        *(("devices", value) for value in NO_DEVICES),
        ("devices.1.name", "card1"),
        *(("devices.0.name", value) for value in ("", "a b", "../x", 0)),
        ("devices.0.unknown", 1),
        ("hooks", []),
        ("containerEdits", []),
        ("containerEdits.capabilities", ["CAP_SYS_ADMIN"]),
        *(("containerEdits.env", value) for value in ("A=b", ["A"], ["=b"], [5], ["A=\0"], ["A=" + "x" * 5000])),
        ("containerEdits.env", ["A=b"] * 5000),
        *(("containerEdits.deviceNodes.0.path", value) for value in ("", "dev/x", "/dev/../etc", None)),
        *(("containerEdits.deviceNodes.0.type", value) for value in ("char", "d", 5)),
        *(("containerEdits.deviceNodes.0.permissions", value) for value in ("x", "rwx", "r w", 7)),
        *(("containerEdits.deviceNodes.0.major", value) for value in (-1, 1 << 32, "1", 1.5, True)),
        *(("containerEdits.deviceNodes.0.uid", value) for value in (-1, 0xFFFFFFFF, "0")),
        *(("containerEdits.mounts.0.hostPath", value) for value in ("", "bin/x", "/a/../b")),
        *(("containerEdits.mounts.0.containerPath", value) for value in ("", "x", "/../etc")),
        *(("containerEdits.mounts.0.type", value) for value in ("overlay", "proc", "ext4", 1)),
        *(("containerEdits.mounts.0.options", value) for value in ("ro", ["ro,dev"], [""], [1])),
        *(("containerEdits.hooks.0.hookName", value) for value in ("", "start", "poststopp", None)),
        *(("containerEdits.hooks.0.path", value) for value in ("", "hook", "/usr/../x")),
        *(("containerEdits.hooks.0.timeout", value) for value in (0, -1, 1e3, 1 << 40)),
        ("containerEdits.hooks.0.env", ["LD_PRELOAD"]),
        ("containerEdits.hooks.0.cwd", "/"),
        *(("containerEdits.additionalGids", value) for value in ([-1], [1 << 32], ["5"], [True], 5)),
        ("containerEdits.intelRdt", {"x": 1}),
        ("annotations", {"a": 1}),
        ("annotations", "x"),
    ],
)
def test_a_wrong_value_is_refused_with_file_and_field(path: str, value: Any) -> None:
    with pytest.raises((CorruptError, LimitError), match=r"^/etc/cdi/v.json: "):
        read(change(path, value))


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\xff\xfe", b"[]", b"null", b"5", b"{", b'{"cdiVersion": NaN}', b"[" * 100_000, b'{"a":' * 50_000),
        b'{"cdiVersion": "0.6.0", "cdiVersion": "0.6.0", "kind": "v/c", "devices": [{"name": "a"}]}',
        b'{"cdiVersion": "0.6.0", "kind": "v/c", "devices": [{"name": "a"}], "x": ' + b"9" * 5000 + b"}",
    ],
    ids=range(11),
)
def test_what_is_no_document_is_refused(data: bytes) -> None:
    for path in ("/x.json", "/x.yaml"):
        with pytest.raises((CorruptError, LimitError), match=f"^{path}: "):
            parse(data, path)


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [1]\nb: *x",
        "a: &x 1",
        "x: !!python/object/apply:os.system ['true']",
        "x: !include /etc/passwd",
        "a: 1\na: 1",
        "<<: {cdiVersion: 0.6.0}",
        "a: " + "[" * 50 + "]" * 50,
        "[" * 100_000,
        "a: b\n---\nc: d",
        "? [a]\n: b",
        "- 1\n" * 300_000,
        "\x01",
        "a: 'b",
    ],
    ids=range(13),
)
def test_what_yaml_has_beyond_json_is_refused(text: str) -> None:
    with pytest.raises((CorruptError, LimitError), match=r"^/x.yaml: "):
        parse(text.encode(), "/x.yaml")


def test_a_spec_is_not_read_beyond_its_bound(tmp_path: Path) -> None:
    (tmp_path / "big.json").write_bytes(b" " * (SPEC_MAX + 2))
    os.mkfifo(tmp_path / "fifo.json")
    (tmp_path / "directory.yaml").mkdir()
    (tmp_path / "gone.json").symlink_to("nowhere")
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    (tmp_path / "other.txt").write_text("no spec")
    found = load([str(tmp_path), str(tmp_path / "missing")])
    names = {os.path.basename(path) for path in found.broken}
    assert names == {"big.json", "fifo.json", "directory.yaml", "gone.json", "endless.yaml"}


def write(directory: Path, name: str, document: Any) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(document if isinstance(document, str) else json.dumps(document))


def test_the_later_directory_wins_and_one_directory_contradicts_itself(tmp_path: Path) -> None:
    etc, run = tmp_path / "etc", tmp_path / "run"
    write(etc, "a.json", small_spec(devices=("0", "1", "2")))
    write(etc, "b.json", small_spec(devices=("1", "2", "3")))
    write(run, "a.json", small_spec(devices=("0", "2")))
    found = load([str(etc), str(run)])
    kind = "vendor.com/gpu"
    assert {name: spec.path for name, spec in found.devices.items()} == {
        f"{kind}=0": f"{run}/a.json",
        f"{kind}=2": f"{run}/a.json",  # whom nobody contests there
        f"{kind}=3": f"{etc}/b.json",
    }
    assert found.contested == {f"{kind}=1": (f"{etc}/a.json", f"{etc}/b.json")}
    assert load([str(run), str(etc)]).contested.keys() == {f"{kind}=1", f"{kind}=2"}


def test_a_broken_file_takes_no_other_with_it(tmp_path: Path) -> None:
    write(tmp_path, "good.json", small_spec())
    write(tmp_path, "bad.yaml", "kind: [")
    found = load([str(tmp_path)])
    assert list(found.devices) == ["vendor.com/gpu=0"]
    assert found.broken[f"{tmp_path}/bad.yaml"].startswith(f"{tmp_path}/bad.yaml: got no valid YAML")


def test_a_name_is_kind_and_device() -> None:
    assert parse_name("vendor.com/gpu=0") == Name("vendor.com/gpu", "0")
