"""``python -m tests.support.unprivileged UID CALLS``: calls of the command, made by a user without privileges.

CALLS is JSON, a list of calls, each a list of words. ["snapshot", DIR, FILE] pickles what is seen of a tree; all others
are words of `onesec`. Prints a line of JSON for each: its status, and what it said on stderr.

Everything is imported before the user changes: an interpreter and a checkout below /root are nobody else's to read.
The calls have a mount namespace of their own, in which /dev/fuse is everybody's, as udev leaves it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import stat
import sys
import tempfile

import cext
import registry.skopeo
import registry.zstd  # noqa: F401
from lazyfs import container, portable, probe, tree  # noqa: F401
from onesec.cli.main import main
from tests.support.trees import snapshot

CLONE_NEWNS = 0x20000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000


def call(words: list[str]) -> dict[str, object]:
    if words[0] == "snapshot":
        with open(words[2], "wb") as file:
            pickle.dump(snapshot(words[1]), file)
        return {"status": 0, "stderr": ""}
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main(words)
    return {"status": status, "stderr": said.getvalue()}


def open_fuse_to_all() -> None:
    cext.unshare(CLONE_NEWNS)
    cext.mount("none", "/", None, MS_REC | MS_PRIVATE, None)
    device = os.stat("/dev/fuse").st_rdev
    with tempfile.TemporaryDirectory() as directory:
        node = f"{directory}/fuse"
        os.mknod(node, stat.S_IFCHR, device)
        os.chmod(node, 0o666)
        cext.mount(node, "/dev/fuse", None, MS_BIND, None)


if __name__ == "__main__":
    open_fuse_to_all()
    user = int(sys.argv[1])
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    for words in json.loads(sys.argv[2]):
        print(json.dumps(call(words)), flush=True)
