"""Images that try to move the runtime's mounts, its working directory or its binds out of the container.

CVE-2019-16884, CVE-2021-30465, CVE-2024-21626, CVE-2025-31133, CVE-2025-52565, CVE-2025-52881, CVE-2024-3154.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.plain import Runner
from tests.support.trees import make_image


@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
@pytest.mark.parametrize("target", ["/etc", "../../../../etc", "tmp", "/nowhere"])
def test_a_kernel_target_that_is_a_link_is_refused(tmp_path: Path, tool: Path, name: str, target: str) -> None:
    run = Runner(tmp_path, make_image(tmp_path, tool, links={name: target}, kernel_targets=False))
    done = run("/bin/tool", "true")
    assert done.returncode == 125
    assert done.stderr.startswith(f"onesec: /{name} in the image: got a symbolic link, want a directory\n".encode())
    assert run.left() == []


@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
def test_a_kernel_target_that_is_a_file_is_refused(tmp_path: Path, tool: Path, name: str) -> None:
    run = Runner(tmp_path, make_image(tmp_path, tool, files={name: b"x"}, kernel_targets=False))
    done = run("/bin/tool", "true")
    assert (done.returncode, b"got a regular file, want a directory" in done.stderr) == (125, True)


def test_missing_kernel_targets_are_made(tmp_path: Path, tool: Path) -> None:
    assert Runner(tmp_path, make_image(tmp_path, tool, kernel_targets=False))("/bin/tool", "true").returncode == 0


@pytest.mark.parametrize("directory", ["/proc/self/fd/7", "/proc/self/fd/7/../..", "/proc/self", "/dev", "/sys/fs"])
def test_a_working_directory_in_a_kernel_file_system_is_refused(tmp_path: Path, tool: Path, directory: str) -> None:
    run = Runner(tmp_path, make_image(tmp_path, tool))
    for done in (
        run("/bin/tool", "cwd", options=["-w", directory]),
        run("/bin/tool", "cwd", config={"WorkingDir": directory}),
    ):
        assert done.returncode == 125, done
        assert done.stderr.startswith(b"onesec: working directory: got /")


def test_a_working_directory_through_a_link_into_proc_is_refused(tmp_path: Path, tool: Path) -> None:
    run = Runner(tmp_path, make_image(tmp_path, tool, links={"work": "/proc/self/fd/8"}))
    done = run("/bin/tool", "cwd", config={"WorkingDir": "/work"})
    assert (done.returncode, b"want one outside /proc" in done.stderr) == (125, True)


def test_links_and_dots_of_a_working_directory_end_in_the_image(tmp_path: Path, tool: Path) -> None:
    image = make_image(tmp_path, tool, links={"up": "../../../../../../..", "home": "/up/work"})
    run = Runner(tmp_path, image)
    marker = "work/onesec-must-not-exist"
    done = run("/bin/tool", "cwd", config={"WorkingDir": f"/up/{marker}"})
    assert done.stdout == f"/{marker}\n".encode()
    assert not Path("/", marker).exists()


def test_a_loop_of_links_is_refused(tmp_path: Path, tool: Path) -> None:
    run = Runner(tmp_path, make_image(tmp_path, tool, links={"a": "b", "b": "a"}))
    done = run("/bin/tool", "cwd", options=["-w", "/a/x"])
    assert (done.returncode, b"over 40 symbolic links" in done.stderr) == (125, True)


@pytest.mark.parametrize(
    "destination", ["/proc", "/proc/sys/kernel", "/sys/fs/cgroup", "/link/self", "/", "/dev", "/x/.."]
)
def test_a_volume_over_a_kernel_file_system_or_the_root_is_refused(
    tmp_path: Path, tool: Path, destination: str
) -> None:
    run = Runner(tmp_path, make_image(tmp_path, tool, links={"link": "/proc"}))
    done = run("/bin/tool", "true", options=["-v", f"/etc:{destination}"])
    assert (done.returncode, done.stderr[:28]) == (125, b"onesec: volume: destination:")


def test_a_volume_through_a_link_lands_in_the_image_not_on_the_host(tmp_path: Path, tool: Path) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    (tmp_path / "source").mkdir()
    image = make_image(tmp_path, tool, links={"out": f"../../../..{canary}"})
    run = Runner(tmp_path, image)
    assert run("/bin/tool", "true", options=["-v", f"{tmp_path / 'source'}:/out/made"]).returncode == 0
    assert list(canary.iterdir()) == []


def test_etc_as_a_link_out_of_the_image_writes_nothing_on_the_host(tmp_path: Path, tool: Path) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    image = make_image(tmp_path, tool, links={"etc/hosts": f"{canary}/hosts", "etc/hostname": f"../..{canary}/name"})
    assert Runner(tmp_path, image)("/bin/tool", "true").returncode == 0
    assert list(canary.iterdir()) == []


def test_user_files_that_lead_out_or_never_end_are_not_followed(tmp_path: Path, tool: Path) -> None:
    big = b"x" * (9 << 20)
    image = make_image(tmp_path, tool, files={"big": big}, links={"etc/group2": "/big"})
    run = Runner(tmp_path, image)
    assert run("/bin/tool", "id").returncode == 0
    (tmp_path / "second").mkdir()
    hostile = make_image(tmp_path / "second", tool, links={"etc/shadow": "/proc/self/mem"}, files={"etc/group": big})
    done = Runner(tmp_path, hostile)("/bin/tool", "id")
    assert (done.returncode, b"want at most" in done.stderr) == (125, True)


def test_the_container_cannot_mount_make_devices_or_reach_the_keyring(tmp_path: Path, tool: Path) -> None:
    run = Runner(tmp_path, make_image(tmp_path, tool))
    for verb in ("mount", "mknod", "keyctl"):
        done = run("/bin/tool", verb)
        assert done.returncode != 0, verb
        assert b"not permitted" in done.stderr or b"not implemented" in done.stderr


def test_our_own_seccomp_profile_works_and_refuses_the_same(tmp_path: Path, tool: Path) -> None:
    own = Path(__file__).parents[2] / "lazyfs" / "seccomp.json"
    run = Runner(tmp_path, make_image(tmp_path, tool), {"seccomp": str(own)})
    assert run("/bin/tool", "id").stdout == b"0:0\n"
    for verb in ("mount", "mknod", "keyctl"):
        assert run("/bin/tool", verb).returncode != 0, verb


def test_labels_and_annotations_change_nothing(tmp_path: Path, tool: Path) -> None:
    run = Runner(tmp_path, make_image(tmp_path, tool))
    labels = {
        "run.oci.hooks.stdin": "x",
        "io.podman.annotations.privileged": "TRUE",
        "run.oci.keep_original_groups": "1",
    }
    done = run("/bin/tool", "cat", "/proc/self/status", config={"Labels": labels, "Volumes": {"/proc": {}}})
    assert b"CapEff:\t00000000800405fb\n" in done.stdout, done
