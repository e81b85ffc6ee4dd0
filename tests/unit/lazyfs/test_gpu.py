from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from lazyfs.cdi import Catalogue, Edits, Mount, Name, Spec, catalogue, parse, parse_name
from lazyfs.errors import ContainerError
from lazyfs.gpu import applied, check_mounts, edits_of, gpu_names
from lazyfs.runtime_config import Bind, Identity, ImageConfig, Machine, RunOptions, runtime_config
from tests.support.cdi import small_spec, whole_spec

PLACES = ("/etc/cdi", "/var/run/cdi")
MACHINE = Machine(hostname="host", root="/r", seccomp=None, open_files=1024)


def known(*documents: Mapping[str, Any], broken: Mapping[str, str] | None = None) -> Catalogue:
    specs = [parse(json.dumps(one).encode(), f"/etc/cdi/{number}.json") for number, one in enumerate(documents)]
    return catalogue(specs, broken or {})


def names(word: str, *documents: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in gpu_names(word, known(*documents), PLACES)]


def edits(document: Mapping[str, Any], *devices: str) -> Edits:
    kind = document["kind"]
    return edits_of([Name(kind, device) for device in devices], known(document), PLACES)


def document(user: Identity | None = None) -> dict[str, Any]:
    image = ImageConfig(command=("c",), environment=(("FOO", "image"), ("LD_PRELOAD", "./evil.so")))
    binds = [Bind("/s", "/usr/lib/libVendor.so.0"), Bind("/t", "/deep/er")]
    return runtime_config(image, RunOptions(), user or Identity(), MACHINE, working_directory="/", binds=binds)


def apply(changes: Edits, user: Identity | None = None, look: Any = None) -> dict[str, Any]:
    places = {mount.destination: mount.destination for mount in changes.mounts}
    return applied(document(user), changes, places, look or nothing_there)


def nothing_there(path: str) -> os.stat_result:
    raise FileNotFoundError(2, "no such file", path)


def device(mode: int, major: int = 0, minor: int = 0) -> Any:
    class Found:
        st_mode = mode
        st_rdev = os.makedev(major, minor)

    return lambda path: Found()


# ---------------------------------------------------------------------- which devices


def test_all_is_the_device_of_that_name_or_every_one() -> None:
    assert names("all", small_spec("nvidia.com/gpu", ("0", "1", "all"))) == ["nvidia.com/gpu=all"]
    found = names("all", small_spec("nvidia.com/gpu", ("10", "2", "GPU-x", "0")))
    assert found == [f"nvidia.com/gpu={name}" for name in ("0", "2", "10", "GPU-x")]


def test_numbers_and_full_names_may_stand_together() -> None:
    spec = small_spec("nvidia.com/gpu", ("0", "1"))
    assert names("0,1", spec) == names("device=0,1", spec) == ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]
    assert names("vendor.com/x=y,0", spec) == ["vendor.com/x=y", "nvidia.com/gpu=0"]


def test_nvidia_comes_first_and_another_vendor_is_taken_if_it_is_the_only_one() -> None:
    amd, intel, nic = small_spec("amd.com/gpu"), small_spec("intel.com/gpu"), small_spec("vendor.com/nic")
    assert names("0", amd, nic) == ["amd.com/gpu=0"]
    assert names("0", amd, intel, small_spec("nvidia.com/gpu")) == ["nvidia.com/gpu=0"]
    with pytest.raises(ContainerError, match=r"got amd.com/gpu, intel.com/gpu, want one kind"):
        names("0", amd, intel)


def test_without_a_spec_one_line_says_what_to_do() -> None:
    with pytest.raises(ContainerError, match=r"^gpus: got no CDI spec of a GPU in /etc/cdi, /var/run/cdi$") as caught:
        names("all", small_spec("vendor.com/nic"))
    assert caught.value.hint == "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
    with pytest.raises(ContainerError, match=r"got no CDI spec of nvidia.com/gpu") as caught:
        edits_of([parse_name("nvidia.com/gpu=0")], known(), PLACES)
    assert caught.value.hint is not None


def test_a_broken_spec_is_named_where_its_device_is_missed() -> None:
    broken = known(broken={"/etc/cdi/n.yaml": "/etc/cdi/n.yaml: got no valid YAML", "/etc/cdi/m.json": "x"})
    with pytest.raises(ContainerError, match=r"n.yaml: got no valid YAML and 1 more"):
        gpu_names("all", broken, PLACES)


@pytest.mark.parametrize("word", ["", "0,", ",", "a b", "all,", "-1", "none=", "=0"])
def test_words_that_name_nothing_are_refused(word: str) -> None:
    with pytest.raises(ContainerError):
        edits_of([parse_name(one) for one in names(word, small_spec())], known(small_spec()), PLACES)


def test_an_unknown_device_comes_with_those_that_there_are() -> None:
    with pytest.raises(ContainerError, match=r"device vendor.com/gpu=b: not found") as caught:
        edits(small_spec(devices=tuple("0123456789a")), "3", "b")
    assert caught.value.hint == "vendor.com/gpu has 0, 1, 2, 3, 4, 5, 6, 7, …"


def test_a_device_of_two_files_is_refused_and_both_are_named() -> None:
    contested = known(small_spec(), small_spec())
    with pytest.raises(ContainerError, match=r"described by /etc/cdi/0.json and by /etc/cdi/1.json"):
        edits_of([Name("vendor.com/gpu", "0")], contested, PLACES)


def test_all_of_devices_that_are_all_described_twice_is_an_error_and_not_nothing() -> None:
    contested = known(small_spec(), small_spec())
    with pytest.raises(ContainerError, match=r"described by /etc/cdi/0.json and by /etc/cdi/1.json"):
        edits_of(gpu_names("all", contested, PLACES), contested, PLACES)


# ---------------------------------------------------------------------- merging


def test_what_a_spec_says_for_all_comes_once_before_its_first_device() -> None:
    one = small_spec("a.com/gpu", ("0", "1"), env=["SPEC_A=1"])
    two = small_spec("b.com/gpu", ("0",), env=["SPEC_B=1"])
    wanted = [Name("a.com/gpu", "1"), Name("b.com/gpu", "0"), Name("a.com/gpu", "0"), Name("a.com/gpu", "1")]
    merged = edits_of(wanted, known(one, two), PLACES)
    assert [name for name, _ in merged.environment] == ["SPEC_A", "DEVICE_1", "SPEC_B", "DEVICE_0", "DEVICE_0"]


def test_a_spec_whose_devices_nobody_wants_changes_nothing() -> None:
    hidden = small_spec("b.com/gpu", hooks=[{"hookName": "prestart", "path": "/bin/false"}])
    assert edits_of([Name("a.com/gpu", "0")], known(small_spec("a.com/gpu"), hidden), PLACES).hooks == ()


def test_network_interfaces_are_refused_and_not_forgotten() -> None:
    spec = small_spec(netDevices=[{"hostInterfaceName": "eth7", "name": "eth0"}]) | {"cdiVersion": "1.1.0"}
    with pytest.raises(ContainerError, match="eth7"):
        edits(spec, "0")


# ---------------------------------------------------------------------- the document


def test_variables_take_the_place_of_those_of_the_image_and_later_ones_win() -> None:
    env = apply(edits(whole_spec(), "card1", "2nd"))["process"]["env"]
    assert {"FOO=SPEC", "BAR=a=b", "CARD=2", "SECOND=yes"} <= set(env)
    assert len(env) == len({item.partition("=")[0] for item in env})


def test_device_nodes_have_the_numbers_of_the_spec() -> None:
    linux = apply(edits(whole_spec(), "card1"), Identity(7, 8))["linux"]
    assert linux["devices"] == [
        {"path": "/dev/vendorctl", "type": "b", "major": 26, "minor": 0, "uid": 7, "gid": 8},
        {
            "path": "/dev/card1",
            "type": "c",
            "major": 25,
            "minor": 25,
            "fileMode": 0o600,
            "uid": 1000,
            "gid": 1001,
        },
        {"path": "/dev/card-render1", "type": "c", "major": 25, "minor": 26, "uid": 7, "gid": 8},
    ]
    assert [rule["access"] for rule in linux["resources"]["devices"]] == ["", "rw", "rwm"]
    assert all(rule["allow"] is True for rule in linux["resources"]["devices"])


def test_what_a_node_leaves_out_comes_from_the_host() -> None:
    spec = small_spec(deviceNodes=[{"path": "/dev/x"}])
    made = apply(edits(spec, "0"), look=device(stat.S_IFCHR | 0o640, 195, 255))["linux"]["devices"]
    want = {"path": "/dev/x", "type": "c", "major": 195, "minor": 255, "fileMode": 0o640, "uid": 0, "gid": 0}
    assert made == [want]
    fifo = small_spec(deviceNodes=[{"path": "/dev/x", "type": "p"}])
    assert "major" not in apply(edits(fifo, "0"))["linux"]["devices"][0]
    assert apply(edits(fifo, "0"))["linux"]["resources"] == {"devices": []}


@pytest.mark.parametrize(
    ("node", "look", "words"),
    [
        ({"path": "/dev/x"}, nothing_there, "no such file"),
        ({"path": "/dev/x"}, device(stat.S_IFREG | 0o644), "got no device"),
        (
            {"path": "/dev/x", "hostPath": "/dev/disk", "type": "c"},
            device(stat.S_IFBLK, 8, 0),
            "/dev/disk: got b, want c",
        ),
        ({"path": "/etc/x", "type": "c", "major": 1, "minor": 3}, nothing_there, "want a path below /dev"),
        ({"path": "/dev", "type": "c", "major": 1, "minor": 3}, nothing_there, "want a path below /dev"),
    ],
)
def test_nodes_that_cannot_be_are_refused(node: Mapping[str, Any], look: Any, words: str) -> None:
    with pytest.raises(ContainerError, match=words):
        apply(edits(small_spec(deviceNodes=[node]), "0"), look=look)


def test_the_last_of_two_nodes_with_one_path_counts() -> None:
    nodes = [{"path": "/dev/x", "type": "c", "major": 1, "minor": minor} for minor in (3, 5)]
    assert [node["minor"] for node in apply(edits(small_spec(deviceNodes=nodes), "0"))["linux"]["devices"]] == [5]


def targets(made: Mapping[str, Any]) -> list[str]:
    return [mount["destination"] for mount in made["mounts"]]


def test_mounts_take_the_place_of_others_and_outer_ones_come_first() -> None:
    made = apply(edits(whole_spec(), "card1"))
    found = targets(made)
    assert found == sorted(found, key=lambda path: path.count("/"))
    assert found[:3] == ["/proc", "/dev", "/sys"]
    assert len(found) == len(set(found))
    rows = {mount["destination"]: mount for mount in made["mounts"]}
    assert rows["/usr/lib/libVendor.so.0"] == {
        "destination": "/usr/lib/libVendor.so.0",
        "type": "bind",
        "source": "/usr/lib/libVendor.so.0",
        "options": ["ro", "nosuid", "nodev", "bind", "rprivate"],
    }
    assert rows["/usr/bin/vendor"]["options"] == ["rbind", "rprivate"]
    assert rows["/tmp/data"]["type"] == rows["/tmp/data"]["source"] == "tmpfs"
    assert rows["/deep/er"]["source"] == "/t"


def test_a_mount_whose_file_is_gone_is_named() -> None:
    with pytest.raises(ContainerError, match="mount of /bin/vendor: no such file"):
        check_mounts(edits(whole_spec(), "card1"), nothing_there)
    kinds = check_mounts(Edits(mounts=(Mount("/", "/a"), Mount("/bin/sh", "/b"), Mount("tmpfs", "/c", "tmpfs"))))
    assert kinds == {"/a": True, "/b": False, "/c": True}


def hooks(made: Mapping[str, Any], stage: str) -> Sequence[Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = made["hooks"][stage]
    return found


def test_hooks_of_the_host_begin_at_its_root_with_nothing_of_the_image() -> None:
    made = apply(edits(whole_spec(), "card1"))
    (hook,) = hooks(made, "createContainer")
    assert hook["path"] == "/bin/bash"
    assert hook["args"][:4] == ["bash", "-p", "-c", 'cd / && exec -a "$0" "$@"']
    assert hook["args"][4:] == ["vendor-hook", "/bin/true", "x"]
    assert hook["env"] == ["A=b", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    (inside,) = hooks(made, "startContainer")
    assert (inside["path"], inside["args"], inside["timeout"]) == ("/usr/bin/ldconfig", ["/usr/bin/ldconfig"], 7)
    assert len(inside["env"]) == 1
    assert "LD_PRELOAD" not in json.dumps(made["hooks"])


@pytest.mark.parametrize("path", ["/nowhere/hook", "/etc/passwd", "/usr"])
def test_a_hook_that_cannot_be_executed_is_said_before_anything_runs(path: str) -> None:
    spec = small_spec(hooks=[{"hookName": "createRuntime", "path": path}])
    with pytest.raises(ContainerError, match=f"hook {path}: got no executable file"):
        apply(edits(spec, "0"))


def test_groups_are_added_once() -> None:
    made = apply(edits(whole_spec(), "2nd"), Identity(1, 2, (45, 46)))
    assert made["process"]["user"]["additionalGids"] == [45, 46, 44]


def test_no_edits_change_nothing() -> None:
    assert applied(document(), Edits(), {}) == document()


def test_the_document_given_stays_as_it_was() -> None:
    given = document()
    applied(given, edits(whole_spec(), "card1", "2nd"), dict.fromkeys(targets_of(whole_spec()), "/x"), nothing_there)
    assert given == document()


def targets_of(spec: Mapping[str, Any]) -> list[str]:
    return [mount["containerPath"] for mount in spec["containerEdits"]["mounts"]]


def test_a_spec_is_a_value() -> None:
    spec = next(iter(known(small_spec()).devices.values()))
    assert isinstance(spec, Spec)
    assert spec == next(iter(known(small_spec()).devices.values()))
