"""The only module that runs skopeo: for the transports that we do not speak ourselves.

skopeo copies into a `dir:` directory, which keeps each layer as it is stored (an `oci:` target would compress
plain layers first, for nothing). The copy lives on the layout's own file system and is removed by the caller.
"""

from __future__ import annotations

import shutil
import subprocess

from cext.errors import UnsupportedError
from registry.errors import SkopeoError

TRANSPORTS = ("docker", "docker-archive", "docker-daemon", "containers-storage", "oci-archive", "dir", "ostree", "sif")
_WORDS_MAX = 600


def copy_to_directory(source: str, directory: str) -> None:
    """`source` in skopeo's words, `transport:details`. Raises SkopeoError with what skopeo said."""
    program = shutil.which("skopeo")
    if program is None:
        raise UnsupportedError(f"{source}: needs skopeo, which is not installed", hint="apt install skopeo")
    # Its own policy file may be missing (Debian's package has one, containers often lack it); digests are verified by
    # us.
    command = [program, "copy", "--quiet", "--insecure-policy", source, f"dir:{directory}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise SkopeoError(source, done.returncode, (words[-1] if words else "no message")[:_WORDS_MAX])
