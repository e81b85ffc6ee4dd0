"""What an image says about itself never steers the runtime, and what runs with privileges never has its environment.

CVE-2024-3154 (cri-o: annotations became systemd properties), CVE-2026-94603, CVE-2026-121885, CVE-2026-53492;
CVE-2024-0132 and CVE-2025-23266 (a privileged hook with the image's environment).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lazyfs.runtime_config import Identity, Machine, RunOptions, image_config, runtime_config
from registry.layout import Layout
from registry.reference import Reference
from tests.support.command import Onesec
from tests.support.oci import oci_layout, tar_of
from tests.support.shell import shell_image, shell_tree

MACHINE = Machine(hostname="host", root="/r", seccomp={"defaultAction": "SCMP_ACT_ERRNO"}, open_files=1024)
PLAIN: dict[str, Any] = {"Entrypoint": ["/bin/sh"], "Env": ["PATH=/bin"]}

STEERING: dict[str, dict[str, Any]] = {
    "systemd properties, CVE-2024-3154": {"Labels": {"org.systemd.property.ExecStartPre": "['/bin/evil']"}},
    "crun's hooks": {"Labels": {"run.oci.hooks.stdin": "/dev/sda", "run.oci.hooks.stdout": "/etc/passwd"}},
    "crun's handler": {"Labels": {"run.oci.handler": "krun"}},
    "crun's groups": {"Labels": {"run.oci.keep_original_groups": "1"}},
    "crun's seccomp receiver": {"Labels": {"run.oci.seccomp.receiver": "/tmp/evil.sock"}},
    "podman's privileged mark": {"Labels": {"io.podman.annotations.privileged": "TRUE"}},
    "podman's devices": {"Labels": {"io.podman.annotations.device": "/dev/sda"}},
    "cdi devices": {"Labels": {"cdi.k8s.io/evil": "nvidia.com/gpu=all"}},
    "volumes over the kernel": {"Volumes": {"/proc": {}, "/sys": {}, "/dev": {}, "/": {}}},
    "ports": {"ExposedPorts": {"22/tcp": {}}},
    "a health check": {"Healthcheck": {"Test": ["CMD-SHELL", "evil"]}},
    "triggers": {"OnBuild": ["RUN evil"]},
    "another shell": {"Shell": ["/evil", "-c"]},
    "host settings of docker": {
        "HostConfig": {
            "Privileged": True,
            "Binds": ["/:/host"],
            "CapAdd": ["ALL"],
            "SecurityOpt": ["seccomp=unconfined"],
        }
    },
    "a network": {"NetworkDisabled": True, "Hostname": "evil", "Domainname": "evil", "MacAddress": "1"},
    "a terminal": {"Tty": True, "OpenStdin": True, "AttachStdin": True},
    "runtime's own words": {
        "linux": {"namespaces": [], "devices": [{"path": "/dev/sda"}]},
        "mounts": [{"destination": "/x", "source": "/", "type": "bind"}],
        "hooks": {"createRuntime": [{"path": "/evil"}]},
        "annotations": {"x": "y"},
    },
}


def config_for(config: dict[str, Any], **outside: Any) -> dict[str, object]:
    image = image_config({"config": config, **outside})
    return runtime_config(image, RunOptions(), Identity(), MACHINE, working_directory="/", binds=())


@pytest.mark.parametrize("case", STEERING)
def test_the_runtimes_config_is_the_same_whatever_an_image_says(case: str) -> None:
    assert config_for({**PLAIN, **STEERING[case]}) == config_for(PLAIN)
    assert config_for(PLAIN, **STEERING[case]) == config_for(PLAIN)


def test_the_config_has_nothing_but_what_is_on_the_list() -> None:
    config = config_for(PLAIN)
    assert set(config) == {"ociVersion", "process", "root", "hostname", "mounts", "linux"}
    linux = config["linux"]
    assert isinstance(linux, dict)
    assert set(linux) == {"namespaces", "maskedPaths", "readonlyPaths", "rootfsPropagation", "seccomp"}


def test_annotations_of_a_foreign_image_do_not_come_in(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shell_tree(tree, ("sh",))
    notes = {"run.oci.handler": "krun", "vnd.onesec.format": "9", "vnd.onesec.domain": "docker.io/library"}
    oci_layout(tmp_path / "oci", tar_of(tree), {"Labels": notes}, manifest={"annotations": notes})
    onesec = Onesec(tmp_path)
    assert onesec.here("import", f"oci:{tmp_path / 'oci'}:t", "-t", "app").status == 0
    layout = Layout.open(onesec.root)
    resolved = layout.resolve(Reference.parse("app"))
    assert resolved.domain == "local"
    assert set(resolved.manifest.annotations) == {"vnd.onesec.format", "vnd.onesec.size", "vnd.onesec.files"}
    assert resolved.manifest.annotations["vnd.onesec.format"] == "1"


RUNTIME = """#!/usr/bin/env python3
import json, os, sys
if "run" in sys.argv:
    fds = {{}}
    for name in os.listdir("/proc/self/fd"):
        try:
            fds[name] = os.readlink("/proc/self/fd/" + name)
        except FileNotFoundError:
            pass  # the listing's own
    with open({out!r}, "w") as file:
        json.dump({{"environment": dict(os.environ), "fds": fds}}, file)
os.execv("/usr/bin/crun", ["crun", *sys.argv[1:]])
"""


def test_the_runtime_has_neither_the_images_environment_nor_our_descriptors(tmp_path: Path, real_machine: None) -> None:
    evil = ["LD_PRELOAD=/evil.so", "LD_AUDIT=/evil.so", "PATH=/bin", "CUDA_MODULE=/evil", "LISTEN_FDS=3", "HOME=/evil"]
    source = shell_image(tmp_path, config={"Env": evil})
    (tmp_path / "crun").write_text(RUNTIME.format(out=str(tmp_path / "seen.json")))
    (tmp_path / "crun").chmod(0o755)
    (tmp_path / "onesec.toml").write_text(f'[run]\nlinger = 0\nruntime = "{tmp_path / "crun"}"\n')
    onesec = Onesec(tmp_path, {"ONESEC_CONFIG": str(tmp_path / "onesec.toml"), "LD_BIND_NOW": "1"})
    assert onesec.here("import", source, "-t", "app").status == 0
    said = onesec("run", "app", "sh", "-c", "echo $HOME; ls /proc/self/fd")
    assert said.status == 0, said
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert set(seen["environment"]) <= {"PATH", "LC_CTYPE"}
    left = {name: place for name, place in seen["fds"].items() if int(name) > 2 and place != str(tmp_path / "crun")}
    assert left == {}
    # in the container they are what the image says, and no business of anybody outside
    assert said.out.split() == ["/evil", "0", "1", "2", "3"]
