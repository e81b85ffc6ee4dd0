"""Images that want devices, hooks or files of the host, and images that stand in the way of a driver's mounts.

CVE-2024-0132, CVE-2025-23266, CVE-2025-23359: an image that bends the hooks or mounts of a GPU's container toolkit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lazyfs.container import Settings
from lazyfs.runtime_config import RunOptions
from tests.support.cdi import small_spec
from tests.support.plain import Runner
from tests.support.trees import make_image


def described(place: Path, **edits: Any) -> Path:
    specs = place / "cdi"
    specs.mkdir()
    (specs / "v.json").write_text(json.dumps(small_spec(**edits)))
    return specs


def test_nothing_that_an_image_says_asks_for_a_device(tmp_path: Path, tool: Path) -> None:
    specs = described(tmp_path, env=["REACHED=yes"], deviceNodes=[{"path": "/dev/reached", "hostPath": "/dev/null"}])
    own = json.dumps(small_spec("image.com/gpu", env=["REACHED=image"])).encode()
    image = make_image(tmp_path, tool, files={"etc/cdi/own.json": own, "var/run/cdi/own.json": own})
    run = Runner(tmp_path, image, {"cdi": [str(specs)]})
    asking: dict[str, Any] = {
        "Env": ["NVIDIA_VISIBLE_DEVICES=all", "CDI_DEVICES=vendor.com/gpu=0"],
        "Labels": {"cdi.k8s.io/x": "vendor.com/gpu=0", "run.oci.hooks.stdin": "x", "com.nvidia.volumes.needed": "x"},
        "Devices": [{"PathOnHost": "/dev/null"}],
        "DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["vendor.com/gpu=0"]}],
        "hooks": {"createContainer": [{"path": "/bin/tool"}]},
        "containerEdits": {"env": ["REACHED=config"]},
    }
    env = run("/bin/tool", "env", config=asking).stdout
    assert b"PATH=" in env
    assert b"REACHED" not in env
    assert b"reached" not in run("/bin/tool", "list", "/dev", config=asking).stdout


def test_specs_inside_of_an_image_are_unknown(tmp_path: Path, tool: Path) -> None:
    specs = described(tmp_path)
    own = json.dumps(small_spec("image.com/gpu")).encode()
    image = make_image(tmp_path, tool, files={"etc/cdi/own.json": own})
    done = Runner(tmp_path, image, {"cdi": [str(specs)]})("/bin/tool", "true", options=["--device", "image.com/gpu=0"])
    assert (done.returncode, b"got no CDI spec of image.com/gpu" in done.stderr) == (125, True)


def test_the_options_of_a_call_are_the_only_ones_that_name_devices() -> None:
    assert (RunOptions().gpus, RunOptions().devices) == ((), ())
    assert Settings(root="/r", run_dir="/d").cdi == ("/etc/cdi", "/var/run/cdi")


@pytest.mark.parametrize("target", ["../../../../..{canary}", "{canary}", "/proc/self/root{canary}"])
def test_a_driver_s_mount_through_a_link_of_the_image_stays_in_the_image(
    tmp_path: Path, tool: Path, target: str
) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    library = tmp_path / "library"
    library.write_text("driver")
    specs = described(tmp_path, mounts=[{"hostPath": str(library), "containerPath": "/usr/lib/vendor/lib.so"}])
    image = make_image(tmp_path, tool, links={"usr/lib/vendor": target.format(canary=canary)})
    done = Runner(tmp_path, image, {"cdi": [str(specs)]})(
        "/bin/tool", "cat", "/usr/lib/vendor/lib.so", options=["--gpus", "0"]
    )
    assert list(canary.iterdir()) == []
    if target.startswith("/proc"):
        assert (done.returncode, b"outside /proc" in done.stderr) == (125, True)
    else:
        assert done.stdout == b"driver"


@pytest.mark.parametrize("path", ["/proc/sys/kernel/core_pattern", "/sys/kernel/uevent_helper", "/proc", "/"])
def test_a_spec_cannot_put_files_over_the_kernel_s(tmp_path: Path, tool: Path, path: str) -> None:
    specs = described(tmp_path, mounts=[{"hostPath": "/etc/hostname", "containerPath": path}])
    done = Runner(tmp_path, make_image(tmp_path, tool), {"cdi": [str(specs)]})(
        "/bin/tool", "true", options=["--gpus", "0"]
    )
    assert (done.returncode, done.stderr[:27]) == (125, b"onesec: device: mount: got ")


def test_a_device_name_is_no_path(tmp_path: Path, tool: Path) -> None:
    run = Runner(tmp_path, make_image(tmp_path, tool), {"cdi": [str(tmp_path)]})
    for word in ("/dev/sda", "../../etc/shadow", "/dev/sda:/dev/sda:rwm"):
        done = run("/bin/tool", "true", options=["--device", word])
        assert (done.returncode, b"want a name like vendor.com/class=device" in done.stderr) == (125, True), word
