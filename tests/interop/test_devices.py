"""Devices by CDI in real containers: a made-up vendor's spec with every kind of edit, under crun and runc."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.cdi import small_spec
from tests.support.command import Onesec
from tests.support.oci import oci_layout, tar_of
from tests.support.plain import Runner
from tests.support.trees import PlainImage, make_image

HOOK = """#!/bin/sh
{ printf '%s\\n' "$0" "$@" "cwd=$(pwd)"; env | sort; } > "$1"
cat > "$1.state"
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, tool: Path) -> PlainImage:
    return make_image(tmp_path_factory.mktemp("image"), tool)


class Vendor:
    """A directory of specs, and what they speak of."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.specs = place / "cdi"
        self.specs.mkdir()
        self.library = place / "libvendor.so.1"
        self.library.write_text("the driver of this host")
        self.hook = place / "hook"
        self.hook.write_text(HOOK)
        self.hook.chmod(0o755)

    def describe(self, spec: Mapping[str, Any], name: str = "vendor.json") -> None:
        (self.specs / name).write_text(json.dumps(spec))

    def spec(self, **more: Any) -> dict[str, Any]:
        edits = {
            "env": ["VENDOR=spec"],
            "deviceNodes": [{"path": "/dev/vendor0", "hostPath": "/dev/zero", "permissions": "rw", "gid": 2000}],
            "mounts": [
                {
                    "hostPath": str(self.library),
                    "containerPath": "/usr/lib/vendor/libvendor.so.1",
                    "options": ["ro", "nosuid", "nodev", "bind"],
                }
            ],
            "hooks": [
                {"hookName": stage, "path": str(self.hook), "args": ["vendor-hook", f"{self.place}/{stage}"]}
                for stage in ("createRuntime", "createContainer", "poststop")
            ],
            "additionalGids": [3000],
        }
        return small_spec("vendor.com/gpu", ("0", "1"), **edits, **more) | {"cdiVersion": "0.7.0"}


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    made = Vendor(tmp_path)
    made.describe(made.spec())
    return made


@pytest.fixture(params=["crun", "runc"])
def run(request: pytest.FixtureRequest, tmp_path: Path, image: PlainImage, vendor: Vendor) -> Runner:
    return Runner(tmp_path, image, {"cdi": [str(vendor.specs)], "runtime": request.param})


def test_files_variables_nodes_groups_and_hooks_of_a_spec_reach_the_container(run: Runner, vendor: Vendor) -> None:
    options = ["--gpus", "all"]
    assert (
        run("/bin/tool", "cat", "/usr/lib/vendor/libvendor.so.1", options=options).stdout == b"the driver of this host"
    )
    env = run("/bin/tool", "env", options=options, config={"Env": ["VENDOR=image"]}).stdout.decode().splitlines()
    assert {"VENDOR=spec", "DEVICE_0=1", "DEVICE_1=1"} <= set(env)
    assert run("/bin/tool", "id", options=options).stdout == b"0:0 3000\n"
    assert b"vendor0\n" in run("/bin/tool", "list", "/dev", options=options).stdout
    assert run("/bin/tool", "write", "/dev/vendor0", "x", options=options).returncode == 0
    refused = run("/bin/tool", "write", "/usr/lib/vendor/libvendor.so.1", "x", options=options)
    assert (refused.returncode != 0, vendor.library.read_text()) == (True, "the driver of this host")
    assert run.left() == []


def test_hooks_of_the_host_get_the_state_and_nothing_of_the_image(run: Runner, vendor: Vendor) -> None:
    hostile = {"Env": ["LD_PRELOAD=./evil.so", "LD_LIBRARY_PATH=.", "BASH_ENV=./evil", "ENV=./evil", "PATH=."]}
    assert run("/bin/tool", "true", options=["--gpus", "0"], config=hostile).returncode in (0, 127)
    done = run("/bin/tool", "exit", "5", options=["--gpus", "0", "-e", "LD_AUDIT=./evil.so"], config=hostile)
    assert done.returncode == 5, done
    for stage in ("createRuntime", "createContainer", "poststop"):
        lines = (vendor.place / stage).read_text().splitlines()
        assert lines[1:3] == [f"{vendor.place}/{stage}", "cwd=/"]
        names = {line.partition("=")[0] for line in lines[3:]} - {"OLDPWD", "PWD", "SHLVL", "_"}
        assert names == {"PATH"}, lines
        state = json.loads((vendor.place / f"{stage}.state").read_text())
        assert state["bundle"].startswith(str(vendor.place / "run"))


def test_a_device_by_its_name_brings_what_its_spec_says_for_all(run: Runner) -> None:
    env = run("/bin/tool", "env", options=["--device", "vendor.com/gpu=1"]).stdout.decode().splitlines()
    assert {"VENDOR=spec", "DEVICE_1=1"} <= set(env)
    assert "DEVICE_0=1" not in env


def test_a_hook_that_fails_ends_the_start(run: Runner, vendor: Vendor) -> None:
    vendor.hook.write_text("#!/bin/sh\nexit 3\n")
    done = run("/bin/tool", "cat", "/etc/passwd", options=["--gpus", "0"])
    assert done.returncode != 0
    assert b"root:" not in done.stdout
    assert b"hook" in done.stderr
    assert run.left() == []


@pytest.fixture
def quick(tmp_path: Path, image: PlainImage, vendor: Vendor) -> Runner:
    return Runner(tmp_path, image, {"cdi": [str(vendor.specs)]})


def test_without_the_option_no_spec_is_looked_at(quick: Runner, vendor: Vendor) -> None:
    vendor.describe({"nonsense": True})
    done = quick("/bin/tool", "env")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"VENDOR" not in done.stdout


def test_what_is_missing_is_said_in_one_line_before_anything_is_made(quick: Runner, vendor: Vendor) -> None:
    assert quick("/bin/tool", "true", options=["--gpus", "7"]).stderr == (
        b"onesec: device vendor.com/gpu=7: not found\nhint: vendor.com/gpu has 0, 1\n"
    )
    (vendor.specs / "vendor.json").unlink()
    done = quick("/bin/tool", "true", options=["--gpus", "all"])
    assert (done.returncode, done.stderr.decode()) == (
        125,
        f"onesec: gpus: got no CDI spec of a GPU in {vendor.specs}\n"
        "hint: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml\n",
    )
    assert not (quick.directory / "run").exists()


def test_a_library_that_is_gone_is_named(quick: Runner, vendor: Vendor) -> None:
    vendor.library.unlink()
    done = quick("/bin/tool", "true", options=["--gpus", "0"])
    assert done.returncode == 125
    assert done.stderr.startswith(f"onesec: device: mount of {vendor.library}: no such file or directory\n".encode())
    assert quick.left() == []


def test_the_host_s_variables_of_another_vendors_runtime_mean_nothing(quick: Runner) -> None:
    config = {"Env": ["NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=all"]}
    assert b"VENDOR=spec" not in quick("/bin/tool", "env", config=config).stdout


def test_what_a_hook_reads_of_the_image_is_part_of_a_profile(tmp_path: Path, tool: Path, vendor: Vendor) -> None:
    """As the ldconfig hook of a GPU's toolkit does, which reads many files at each start."""
    tree = tmp_path / "tree"
    for name in ("bin", "etc", "dev", "proc", "sys", "lib"):
        (tree / name).mkdir(parents=True)
    (tree / "bin/tool").write_bytes(tool.read_bytes())
    (tree / "bin/tool").chmod(0o755)
    (tree / "lib/library").write_bytes(os.urandom(40_000))
    oci_layout(tmp_path / "oci", tar_of(tree), {"Cmd": ["/bin/tool", "true"]})
    vendor.hook.write_text(
        "#!/usr/bin/python3\nimport json, sys\n"
        "config = json.load(open(json.load(sys.stdin)['bundle'] + '/config.json'))\n"
        "open(config['root']['path'] + '/lib/library', 'rb').read()\n"
    )
    (tmp_path / "onesec.toml").write_text(f"[run]\nlinger = 0\ncdi = [{str(vendor.specs)!r}]\n")
    onesec = Onesec(tmp_path, {"ONESEC_CONFIG": str(tmp_path / "onesec.toml")})
    assert onesec("import", f"oci:{tmp_path / 'oci'}:t", "-t", "app").status == 0
    plain, with_device = (
        json.loads(onesec("profile", "--json", *options, "app").out)
        for options in ([], ["--device", "vendor.com/gpu=0"])
    )
    assert with_device["bytes"] >= plain["bytes"] + 40_000
