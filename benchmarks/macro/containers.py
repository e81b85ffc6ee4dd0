"""The same command in a plain directory: by chroot, and by crun. What `onesec run` is measured against."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.macro.scenario import Place

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_IN_CHROOT = (
    """
mount --rbind /dev "$0/dev"
mount -t proc proc "$0/proc"
exec env -i """
    + f"{PATH}"
    + """ chroot "$0" "$@"
"""
)

_ASSEMBLED = (
    """
tree=$1; shift
mount -t tmpfs onesec "$0"
mkdir "$0/dev" "$0/proc"
for path in "$tree"/*; do
    name=${path##*/}
    if [ -L "$path" ]; then cp -P "$path" "$0/$name"
    elif [ ! -d "$path" ] || [ "$name" = dev ] || [ "$name" = proc ]; then :
    else mkdir "$0/$name"; mount --bind "$path" "$0/$name"
    fi
done
mount --rbind /dev "$0/dev"
mount -t proc proc "$0/proc"
exec env -i """
    + f"{PATH}"
    + """ chroot "$0" "$@"
"""
)


def chroot(plain: Path, command: Sequence[str]) -> list[str]:
    """In a mount namespace of its own, with /dev and /proc."""
    for name in ("dev", "proc"):
        (plain / name).mkdir(exist_ok=True)
    return ["unshare", "--mount", "sh", "-ec", _IN_CHROOT, str(plain), *command]


def assembled(place: Place, tree: Path, command: Sequence[str]) -> list[str]:
    """By chroot into a root of bind mounts: a tree that is read-only and has no /dev needs none changed."""
    root = place.path("assembled")
    root.mkdir(exist_ok=True)
    return ["unshare", "--mount", "sh", "-ec", _ASSEMBLED, str(root), str(tree), *command]


def crun(
    place: Place, name: str, plain: Path, command: Sequence[str], volumes: Sequence[tuple[Path, str]] = ()
) -> list[str]:
    """`crun run` of a bundle whose root is the plain directory, with crun's own configuration, and without a cgroup as
    `onesec run` has it. volumes: files of the host, and where the container has them, read-only. crun's names are the
    machine's, so that one of ours carries our process id.
    """
    bundle = place.path(f"bundle-{name}")
    bundle.mkdir(parents=True, exist_ok=True)
    config = bundle / "config.json"
    config.unlink(missing_ok=True)
    subprocess.run(["crun", "spec"], cwd=bundle, check=True)
    spec = json.loads(config.read_text())
    spec["root"] = {"path": str(plain), "readonly": False}
    spec["process"].update(terminal=False, args=list(command), env=[PATH], cwd="/")
    spec["mounts"] += [
        {"destination": inside, "source": str(outside), "type": "bind", "options": ["bind", "ro"]}
        for outside, inside in volumes
    ]
    spec["linux"]["namespaces"] = [one for one in spec["linux"]["namespaces"] if one["type"] != "network"]
    config.write_text(json.dumps(spec))
    return ["crun", "--cgroup-manager=disabled", "run", "--bundle", str(bundle), f"onesec-bench-{name}-{os.getpid()}"]
