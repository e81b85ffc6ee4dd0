"""``python -m tests.support.unprivileged UID CALLS``: calls of the command, made by a user without privileges.

CALLS is JSON, a list of calls, each a list of words. ["snapshot", DIR, FILE] pickles what is seen of a tree; ["kill
server", DIR] kills what serves a mount and waits until that is gone; all others are words of `onesec`. Prints a line of
JSON for each: its status, and what it said on stderr.

The calls have a mount namespace of their own, in which /dev/fuse is everybody's, as udev leaves it, and in which an
interpreter and a checkout below /root can be read.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import pickle
import signal
import stat
import sys
import tempfile
import time
from pathlib import Path

import cext
from lazyfs import portable
from lazyfs.mount_table import mount_table
from onesec.cli.main import main
from tests.support.command import ROOT
from tests.support.trees import snapshot
from tests.support.waiting import PATIENCE_S

CLONE_NEWNS = 0x20000
OPEN_TREE_CLONE, MOVE_FROM_FD = 1, 4
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000


def call(words: list[str]) -> dict[str, object]:
    if words[0] == "snapshot":
        with open(words[2], "wb") as file:
            pickle.dump(snapshot(words[1]), file)
        return {"status": 0, "stderr": ""}
    if words[0] == "kill server":
        return {"status": 0 if kill_server(words[1]) else 1, "stderr": ""}
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main(words)
    return {"status": status, "stderr": said.getvalue()}


def kill_server(directory: str) -> bool:
    """Whether the mount went with it. Of the two processes that a mount has, the server is the other's child."""
    ours = {}
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            text = Path("/proc", name, "stat").read_text(errors="replace") if name.isdigit() else ""
            if f"({portable.NAME[:15]})" in text and os.readlink(f"/proc/{name}/fd/2").startswith(os.environ["HOME"]):
                ours[int(name)] = int(text.rpartition(") ")[2].split()[1])
    for process, parent in ours.items():
        if parent in ours:
            with contextlib.suppress(ProcessLookupError):  # of a mount that is gone, on its way out
                os.kill(process, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while any(row.target == directory for row in mount_table()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def closed_parent(path: str) -> str | None:
    """The first directory on the way that others may not pass."""
    at = ""
    for name in path.split("/")[1:-1]:
        at += f"/{name}"
        if not os.stat(at).st_mode & stat.S_IXOTH:
            return at
    return None


def open_to_all(paths: set[str]) -> None:
    """Puts an open directory in the place of each closed one, with nothing but these paths in it."""
    trees = {path: cext.open_tree(-100, path, OPEN_TREE_CLONE) for path in paths if closed_parent(path)}
    for path, tree in trees.items():
        if (parent := closed_parent(path)) is not None:
            cext.mount("tmpfs", parent, "tmpfs", 0, "mode=755")
        os.makedirs(path, 0o755, exist_ok=True)
        cext.move_mount(tree, "", -100, path, MOVE_FROM_FD)
        os.close(tree)


def open_fuse_to_all() -> None:
    device = os.stat("/dev/fuse").st_rdev
    with tempfile.TemporaryDirectory() as directory:
        node = f"{directory}/fuse"
        os.mknod(node, stat.S_IFCHR, device)
        os.chmod(node, 0o666)
        cext.mount(node, "/dev/fuse", None, MS_BIND, None)


if __name__ == "__main__":
    cext.unshare(CLONE_NEWNS)
    cext.mount("none", "/", None, MS_REC | MS_PRIVATE, None)
    open_to_all({os.path.realpath(path) for path in (sys.base_prefix, sys.prefix, str(ROOT))})
    open_fuse_to_all()
    user = int(sys.argv[1])
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: a change of user takes /proc/<pid> away from its user
    for words in json.loads(sys.argv[2]):
        print(json.dumps(call(words)), flush=True)
