"""What every test is held to: no mount, descriptor or child process is left; what the machine lacks is said loudly."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.trees import build_tool

settings.register_profile("onesec", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("onesec")
"""No test depends on how busy the machine is; a failure says how to have it again."""

os.umask(0o022)  # what tests put into images is for all of its users, whatever the caller's is
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    # A job in the background, or of nohup, has it ignored, and would hand that on to what tests interrupt.
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

REQUIRED_BY_REAL = ("crun", "mkfs.erofs", "cc")


@pytest.fixture(autouse=True)
def _no_leaks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compares mounts, descriptors and children of this process before and after each test."""
    ours = str(tmp_path_factory.getbasetemp())
    before = _state(ours)
    yield
    after = _state(ours)
    for what, old, new in zip(("mounts", "descriptors", "children"), before, after, strict=True):
        left = new - old
        assert not left, f"{request.node.nodeid} left {what}: {sorted(left)}"


def _state(ours: str) -> tuple[set[str], set[str], set[str]]:
    with open("/proc/self/mountinfo") as file:
        mounts = {" ".join(line.split()[4:6]) for line in file}
    # Another test run on this machine mounts and unmounts at will.
    mounts = {row for row in mounts if not row.startswith(("/tmp/", "/var/tmp/")) or row.startswith(ours)}
    descriptors = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            descriptors.add(f"{name} -> {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:
            continue  # the listing's own
    children = set()
    for thread in os.listdir("/proc/self/task"):
        # It may just have ended, or end while this is read.
        with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/self/task/{thread}/children") as file:
            children.update(file.read().split())
    return mounts, descriptors, children


@pytest.fixture(scope="session", autouse=True)
def _no_linger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands that tests start leave no server behind for the next one, unless a test asks for it."""
    path = tmp_path_factory.mktemp("config") / "onesec.toml"
    path.write_text("[run]\nlinger = 0\n")
    before = os.environ.get("ONESEC_CONFIG")
    os.environ["ONESEC_CONFIG"] = str(path)
    yield
    if before is None:
        del os.environ["ONESEC_CONFIG"]
    else:
        os.environ["ONESEC_CONFIG"] = before


@pytest.fixture(scope="session")
def real_machine() -> None:
    """For tests of the real kernel and runtime: root and the programs. In CI a machine that lacks them is a failure."""
    missing = [name for name in REQUIRED_BY_REAL if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
    if os.geteuid() != 0:
        missing.append("root")
    if not missing:
        return
    message = f"this machine lacks {', '.join(missing)}"
    if os.environ.get("CI") or os.environ.get("ONESEC_REQUIRE_ALL"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def tool(tmp_path_factory: pytest.TempPathFactory, real_machine: None) -> Path:
    """The static program that the test images contain."""
    try:
        return build_tool(tmp_path_factory.mktemp("tool"))
    except subprocess.CalledProcessError as error:
        pytest.fail(f"the test program does not compile: {error}")
