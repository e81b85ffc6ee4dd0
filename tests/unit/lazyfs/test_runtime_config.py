from __future__ import annotations

import json
from typing import Any

import pytest

from cext.errors import CorruptError
from lazyfs.errors import ContainerError
from lazyfs.runtime_config import (
    CAPABILITIES,
    Bind,
    Identity,
    ImageConfig,
    Machine,
    RunOptions,
    image_config,
    resolve_user,
    runtime_config,
    seccomp_for,
)

MACHINE = Machine(hostname="host", root="/r", seccomp=None, open_files=1024)
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nwork:x:1000:1001::/home/work:/bin/sh\n12:x:77:78::/n:/bin/sh\nbad line\n"
GROUP = b"root:x:0:\nwork:x:1001:\nextra:x:2000:other,work\nmore:x:2001:work\nbad\n"


def build(image: ImageConfig, options: RunOptions | None = None, identity: Identity | None = None) -> dict[str, Any]:
    options, identity = options or RunOptions(), identity or Identity()
    return runtime_config(image, options, identity, MACHINE, working_directory="/", binds=[Bind("/s", "/d", True)])


def test_only_six_fields_of_an_image_config_reach_the_runtime() -> None:
    plain = {
        "Entrypoint": ["/e"],
        "Cmd": ["c"],
        "Env": ["A=b"],
        "WorkingDir": "/w",
        "User": "u",
        "StopSignal": "SIGINT",
    }
    hostile = {
        **plain,
        "Labels": {"run.oci.hooks.stdin": "x", "io.kubernetes.cri-o.Devices": "/dev/sda"},
        "Volumes": {"/proc": {}},
        "ExposedPorts": {"1/tcp": {}},
        "Capabilities": ["CAP_SYS_ADMIN"],
        "hooks": {"prestart": [{"path": "/x"}]},
    }
    document = {"config": hostile, "annotations": {"run.oci.handler": "krun"}, "linux": {"devices": []}, "mounts": []}
    assert image_config(document) == image_config({"config": plain})
    text = json.dumps(build(image_config(document)))
    assert not any(word in text for word in ("hooks", "annotations", "SYS_ADMIN", "sda", "krun"))


@pytest.mark.parametrize(
    "config",
    [
        {"Cmd": "sh"},
        {"Cmd": [1]},
        {"Env": {"A": "b"}},
        {"Entrypoint": ["a\0b"]},
        {"User": 0},
        {"WorkingDir": ["/"]},
        {"WorkingDir": "/a\0"},
        [],
        "x",
        1,
    ],
)
def test_wrong_shapes_are_refused(config: object) -> None:
    with pytest.raises(CorruptError, match="image config"):
        image_config({"config": config})


def test_an_absent_config_is_an_empty_one() -> None:
    assert (
        image_config({}) == image_config({"config": None}) == image_config({"config": {"Cmd": None}}) == ImageConfig()
    )


def test_words_of_the_call_replace_the_command_and_keep_the_entrypoint() -> None:
    image = ImageConfig(entrypoint=("/e",), command=("c",))
    assert build(image)["process"]["args"] == ["/e", "c"]
    assert build(image, RunOptions(command=("x", "y")))["process"]["args"] == ["/e", "x", "y"]
    with pytest.raises(ContainerError, match="got none"):
        build(ImageConfig())


def test_environment_of_the_call_wins_and_defaults_lose() -> None:
    image = ImageConfig(command=("c",), environment=(("PATH", "/image"), ("A", "1")))
    env = build(image, RunOptions(environment=(("A", "2"), ("B", "3"))))["process"]["env"]
    assert {"PATH=/image", "A=2", "B=3", "HOSTNAME=host"} <= set(env)
    assert len(env) == len({item.partition("=")[0] for item in env})


@pytest.mark.parametrize(
    ("user", "want"),
    [
        ("", Identity(0, 0, (), "/root")),
        ("work", Identity(1000, 1001, (1001, 2000, 2001), "/home/work")),
        ("1000", Identity(1000, 1001, (1001, 2000, 2001), "/home/work")),
        ("work:extra", Identity(1000, 2000, (2000,), "/home/work")),
        ("5:6", Identity(5, 6, (6,), "/")),
        ("5", Identity(5, 0, (0,), "/")),
        ("12", Identity(77, 78, (78,), "/n")),  # a name that looks like a number is a name, as with podman
        (":extra", Identity(0, 2000, (2000,), "/root")),
        ("4294967294:1", Identity(4294967294, 1, (1,), "/")),
    ],
)
def test_users_are_resolved_as_podman_does(user: str, want: Identity) -> None:
    assert resolve_user(user, PASSWD, GROUP) == want


@pytest.mark.parametrize("user", ["nobody", "4294967295", "-1", "0x0", "99999999999", "²", "work:nope", "0:4294967295"])
def test_unknown_users_and_impossible_numbers_are_refused(user: str) -> None:
    with pytest.raises(ContainerError, match="want a name"):
        resolve_user(user, PASSWD, GROUP)


def test_capabilities_are_podmans_and_only_root_holds_them() -> None:
    root = build(ImageConfig(command=("c",)))["process"]["capabilities"]
    other = build(ImageConfig(command=("c",)), identity=Identity(5, 5))["process"]["capabilities"]
    assert (root["effective"], root["inheritable"], root["ambient"]) == (list(CAPABILITIES), [], [])
    assert (other["bounding"], other["effective"], other["permitted"]) == (list(CAPABILITIES), [], [])


def test_volumes_come_last_and_carry_nosuid_and_nodev() -> None:
    last = build(ImageConfig(command=("c",)))["mounts"][-1]
    assert last == {
        "destination": "/d",
        "type": "bind",
        "source": "/s",
        "options": ["rbind", "rprivate", "nosuid", "nodev", "ro"],
    }


def test_seccomp_conditions_are_resolved_for_our_capabilities() -> None:
    profile: dict[str, object] = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [
            {"names": ["a"], "action": "SCMP_ACT_ALLOW", "args": [], "includes": {}, "excludes": {}},
            {"names": ["b"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["c"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["d"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_CHROOT"]}},
            {"names": ["e"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390"]}},
            {"names": ["f"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64"]}, "args": [{"index": 0}]},
        ],
    }
    made = seccomp_for(profile, ["SCMP_ARCH_X86_64"])
    assert made["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert made["syscalls"] == [
        {"names": ["a"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["c"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
        {"names": ["d"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["f"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0}]},
    ]
