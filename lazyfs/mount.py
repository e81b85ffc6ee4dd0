"""The mounts that make an image a file tree: EROFS for the metadata, overlayfs to join it with the object mount.

Everything is made detached (fsopen, fsmount) and appears in the file system in one last step, so a failure at any point
leaves nothing: descriptors are closed, and a detached mount goes with its last descriptor. The options are the measured
ones; each other combination is refused by some kernel or, worse, reads as zeros:

    lowerdir=META::DATA   DATA is a data-only lower (6.5): reached through redirects only, never listed
    metacopy, redirect_dir  follow the names that fs.erofs carries; both are needed together
    xino=off              st_ino stays below 2^63
    index=on              with an upper: a changed hard link stays a hard link

A user's mount is remembered in <run-dir>/mounts/<id>.json; what makes it one of ours is its source in the mount table.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Literal, TypeVar

import cext
from cext.errors import CorruptError, UnsupportedError
from cext.record import Record, as_dict
from lazyfs.errors import MountError
from lazyfs.runtime_config import PrivateFile

READ_AHEAD_KB = 4096
"""What a reader of local packs profits from: a gigabyte in 1 MiB requests comes at twice the speed."""

FAR_READ_AHEAD_KB = 256
"""Where packs are at a registry: a fault that outruns the boot pack must not fetch what nobody asked for."""

SOURCE = "onesec"
"""First column of the mount table."""

ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8

_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _CMD_CREATE = 0, 1, 6
_MOVE_FROM_FD = 0x4
_UMOUNT_NOFOLLOW = 8
_EROFS_MAGIC = 0xE0F5E1E2
_CLONE_NEWNS = 0x20000
_MS_REC, _MS_SLAVE = 0x4000, 0x80000
_OPEN_TREE_CLONE = 1
_COVERED = "/sys"  # what a private namespace has its mounts over: every host has it and nothing of ours lies there
_PRIVATE_MAX = 32 << 20  # bytes of files that one container alone sees

_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_LOOP_READ_ONLY, _LOOP_AUTOCLEAR = 1, 4
_LOOP_CONFIG = struct.Struct("=II 5Q 4I 64s 64s 32s 2Q 8Q")
_LOOP_TRIES = 16

Mode = Literal["kernel", "portable"]
T = TypeVar("T")


class MountRecord(Record):
    """What ``mount`` did, for people. target is a real path."""

    id: str
    target: str
    name: str
    digest: str
    domain: str
    mode: Mode


# ---------------------------------------------------------------------- detached mounts


class Lowers(Record):
    """What a file tree is made of: the EROFS mount of its metadata and the object mount. Borrowed.

    fresh: makes another mount of each, owned by the caller. Kernels before 6.15 take as lower directories only what is
    attached, and what is detached can be attached once.
    """

    metadata: int
    objects: int
    fresh: Callable[[], tuple[int, int]] | None = None


def erofs(file: int, *, name: str, nests: Callable[[int, Callable[[], int]], bool] | None = None) -> int:
    """A detached, read-only EROFS mount of an index file (verified by the caller). name: for messages.

    Straight from the file where kernel (6.12) and file system allow it, else through a loop device that frees itself.
    Some kernels (6.12.63 is one) count the file's own file system as a level of stacking, and then a container cannot
    have an overlay of its own: there the loop device is taken too. nests: whether this kernel is not one of them.
    """

    def straight() -> int:
        return _erofs(f"/proc/self/fd/{file}", name)

    try:
        tree = straight()
    except MountError as error:
        if _cause(error) != errno.ENOTBLK:
            raise
        return _erofs_on_loop(file, name)
    try:
        looped = -1 if (nests or _nests)(tree, straight) else _erofs_on_loop(file, name)
    except UnsupportedError:
        return tree  # no loop devices: better a container without overlays of its own than none
    except BaseException:
        os.close(tree)
        raise
    if looped < 0:
        return tree
    os.close(tree)
    return looped


def _erofs_on_loop(file: int, name: str) -> int:
    path, device = _loop(file, name)
    try:
        return _erofs(path, name)
    finally:
        os.close(device)  # the mount keeps the device; autoclear frees it with the mount


def _cause(error: MountError) -> int | None:
    """The errno that a mount call was refused with."""
    return error.__cause__.errno if isinstance(error.__cause__, OSError) else None


def _nests(tree: int, fresh: Callable[[], int]) -> bool:
    """Whether an overlay on an overlay on a mount is possible: a container's own on ours. The limit is two levels."""
    with ExitStack() as stack:
        try:
            return two_levels(stack, tree, memory("stacking"), detached_path)
        except MountError as error:
            if _cause(error) != errno.EINVAL:
                raise
        tree = fresh()
        stack.callback(os.close, tree)
        return in_private_namespace(lambda place: two_levels(stack, tree, memory("stacking"), place))


def two_levels(stack: ExitStack, tree: int, empty: int, place: Place) -> bool:
    """Takes empty. Raises MountError if not even one level is possible."""
    stack.callback(os.close, empty)
    lower, other = place(tree), place(empty)
    one = _create_overlay("stacking", [("lowerdir", f"{lower}:{other}"), ("ro", None)], ATTR_RDONLY)
    stack.callback(os.close, one)
    try:
        two = _create_overlay("stacking", [("lowerdir", f"{place(one)}:{other}"), ("ro", None)], ATTR_RDONLY)
    except MountError:
        return False
    stack.callback(os.close, two)
    return True


def is_erofs(fd: int) -> bool:
    """Whether what is open lies on an EROFS."""
    return cext.filesystem_of(fd) == _EROFS_MAGIC


def _erofs(source: str, name: str) -> int:
    with _filesystem("erofs") as context:
        _create(context, f"{name}: mount of its metadata", [("source", source), ("ro", None)])
        return cext.fsmount(context, _FSMOUNT_CLOEXEC, ATTR_RDONLY | ATTR_NODEV)


def overlay(lowers: Lowers, *, name: str, scratch: int | None = None, attributes: int, detached: bool = True) -> int:
    """A detached overlay of an EROFS mount over the data-only objects. All descriptors are borrowed.

    scratch: a directory, or a detached mount, with `upper` and `work` in it; without it the overlay is read-only.
    detached: tried first, cheaper; False is what an old kernel makes of it.
    """
    if scratch is None:
        attributes |= ATTR_RDONLY
    if detached:
        try:
            upper = None if scratch is None else detached_path(scratch)
            options = _options(detached_path(lowers.metadata), detached_path(lowers.objects), upper)
            return _create_overlay(f"{name}: overlay", options, attributes)
        except MountError as error:
            if _cause(error) != errno.EINVAL or lowers.fresh is None:
                raise
    assert lowers.fresh is not None
    fresh = lowers.fresh()
    # Read here: seen from another mount namespace, below a changed root, the name would begin at the wrong root.
    called = "" if scratch is None else os.readlink(detached_path(scratch))

    def attached(place: Place) -> int:
        with ExitStack() as stack:
            upper = None if scratch is None else _attached(scratch, called, place, stack)
            return _create_overlay(f"{name}: overlay", _options(place(fresh[0]), place(fresh[1]), upper), attributes)

    try:
        return in_private_namespace(attached)
    except OSError as error:
        raise MountError(f"{name}: overlay: {os.strerror(error.errno or 0).lower()}") from error
    finally:
        for fd in fresh:
            os.close(fd)  # the overlay has copies of its own


def _options(metadata: str, objects: str, scratch: str | None) -> list[tuple[str, str | None]]:
    options: list[tuple[str, str | None]] = [
        ("lowerdir", f"{metadata}::{objects}"),
        ("metacopy", "on"),
        ("redirect_dir", "on"),
        ("xino", "off"),
    ]
    if scratch is None:
        return [*options, ("ro", None)]
    return [*options, ("index", "on"), ("upperdir", f"{scratch}/upper"), ("workdir", f"{scratch}/work")]


def _create_overlay(what: str, options: Sequence[tuple[str, str | None]], attributes: int) -> int:
    with _filesystem("overlay") as context:
        _create(context, what, [("source", SOURCE), *options])
        return cext.fsmount(context, _FSMOUNT_CLOEXEC, attributes)


Place = Callable[[int], str]
"""Gives a detached mount a path, for as long as whatever made the Place lasts."""


def detached_path(tree: int) -> str:
    return f"/proc/self/fd/{tree}"


def _attached(directory: int, called: str, place: Place, stack: ExitStack) -> str:
    try:
        return place(directory)
    except OSError:  # a directory of the host, which a private namespace has too
        fd = os.open(called, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        return detached_path(fd)


def in_private_namespace(work: Callable[[Place], T]) -> T:
    """Runs work in a thread whose mount namespace is its own, and ends with it. The Place attaches a mount there."""
    import threading  # old kernels and builds alone pay for it

    made: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            cext.unshare(_CLONE_NEWNS)  # of this thread alone
            cext.mount(None, "/", None, _MS_REC | _MS_SLAVE, None)
            with ExitStack() as stack:
                base = memory("namespace")
                stack.callback(os.close, base)
                cext.move_mount(base, "", -100, _COVERED, _MOVE_FROM_FD)

                numbers = iter(range(1000))

                def place(tree: int) -> str:
                    path = f"{_COVERED}/{next(numbers)}"
                    os.mkdir(path)
                    cext.move_mount(tree, "", -100, path, _MOVE_FROM_FD)
                    return path

                made.append(work(place))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return made[0]


def memory(name: str) -> int:
    """A detached tmpfs for what a container writes."""
    with _filesystem("tmpfs") as context:
        _create(context, f"{name}: scratch in memory", [("source", SOURCE), ("mode", "0700")])
        return cext.fsmount(context, _FSMOUNT_CLOEXEC, ATTR_NODEV)


def private(files: Iterable[PrivateFile], owner: tuple[int, int], *, name: str) -> int:
    """A detached tmpfs with files in one directory. Its pages never go to a swap device where the kernel (6.4) can
    promise that, and end with its last descriptor.
    """
    options: list[tuple[str, str | None]] = [("source", SOURCE), ("mode", "0755"), ("size", str(_PRIVATE_MAX))]
    try:
        tree = _tmpfs([*options, ("noswap", None)], name)
    except MountError:
        tree = _tmpfs(options, name)
    try:
        for one in files:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(one.name, flags, 0, dir_fd=tree), "wb") as file:
                file.write(one.data)
                os.fchown(file.fileno(), *owner)
                os.fchmod(file.fileno(), one.mode)
    except BaseException:
        os.close(tree)
        raise
    return tree


def _tmpfs(options: Sequence[tuple[str, str | None]], name: str) -> int:
    with _filesystem("tmpfs") as context:
        _create(context, name, options)
        return cext.fsmount(context, _FSMOUNT_CLOEXEC, ATTR_NODEV | ATTR_NOSUID | ATTR_NOEXEC)


def copies(tree: int, count: int) -> list[int]:
    """Detached mounts of what the detached mount tree shows; its descriptor stays good for paths, not for attaching.

    A mount is attached once, and it cannot be cloned where it is attached to nothing (before 6.15).
    """

    def clone(place: Place) -> list[int]:
        path = place(tree)
        made: list[int] = []
        try:
            for _ in range(count):
                made.append(cext.open_tree(-100, path, _OPEN_TREE_CLONE | os.O_CLOEXEC))
        except BaseException:
            for fd in made:
                os.close(fd)
            raise
        return made

    return in_private_namespace(clone)


def attach(tree: int, target: int) -> None:
    """Makes a detached mount appear on an open directory."""
    cext.move_mount(tree, "", target, "", _MOVE_FROM_FD | 0x40)


@contextmanager
def _filesystem(kind: str) -> Iterator[int]:
    try:
        context = cext.fsopen(kind, _FSOPEN_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise UnsupportedError(
                f"{kind}: not supported by this kernel",
                hint=f"a kernel with CONFIG_{_OPTION[kind]}",
            ) from error
        if error.errno == errno.EPERM:
            raise UnsupportedError(f"{kind}: not permitted", hint="mounting needs root with CAP_SYS_ADMIN") from error
        raise
    try:
        yield context
    finally:
        os.close(context)


_OPTION = {"erofs": "EROFS_FS", "overlay": "OVERLAY_FS", "tmpfs": "TMPFS", "fuse": "FUSE_FS"}


def _create(context: int, what: str, options: Sequence[tuple[str, str | None]]) -> None:
    try:
        for key, value in options:
            cext.fsconfig(context, _SET_FLAG if value is None else _SET_STRING, key, value, 0)
        cext.fsconfig(context, _CMD_CREATE, None, None, 0)
    except OSError as error:
        said = _kernel_words(context) or os.strerror(error.errno or 0).lower()
        raise MountError(f"{what}: {said}") from error


def _kernel_words(context: int) -> str:
    """What the kernel wrote into the context's log, one message a read, each with a level letter in front."""
    words: list[str] = []
    with suppress(OSError):
        while len(words) < 8 and (message := os.read(context, 1024)):
            words.append(message.decode(errors="replace").strip()[2:])
    return "; ".join(words)


def _loop(file: int, name: str) -> tuple[str, int]:
    """A loop device over a file: its path and an open descriptor."""
    path = os.readlink(f"/proc/self/fd/{file}").encode()[-63:]
    flags = _LOOP_READ_ONLY | _LOOP_AUTOCLEAR
    config = _LOOP_CONFIG.pack(file, 4096, 0, 0, 0, 0, 0, 0, 0, 0, flags, path, b"", b"", *[0] * 10)
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise UnsupportedError(
            f"{name}: its file system cannot back an EROFS mount and there are no loop devices",
            hint="put --root on ext4 or xfs or load the loop module",
        ) from error
    try:
        for _ in range(_LOOP_TRIES):
            device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
                kept, fd = fd, -1
                return device, kept
            except OSError as error:
                if error.errno != errno.EBUSY:  # EBUSY: somebody was faster
                    raise
            finally:
                if fd >= 0:
                    os.close(fd)
    except OSError as error:
        raise MountError(f"{name}: loop device: {os.strerror(error.errno or 0).lower()}") from error
    finally:
        os.close(control)
    raise MountError(f"{name}: no free loop device after {_LOOP_TRIES} tries")


# ---------------------------------------------------------------------- targets


@contextmanager
def target_directory(path: str) -> Iterator[tuple[str, int]]:
    """The real path of a directory to mount on, and the directory open. Refuses what is one of our mounts already."""
    real = os.path.realpath(path)
    if any(mount.target == real and mount.ours for mount in mount_table()):
        raise MountError(f"{path}: got a onesec mount, want a plain directory", hint=f"onesec umount {path}")
    try:
        fd = os.open(real, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MountError(f"{path}: no such directory", hint=f"mkdir -p {path}") from error
    except NotADirectoryError as error:
        raise MountError(f"{path}: got something else, want a directory") from error
    try:
        yield real, fd
    finally:
        os.close(fd)


class TableRow(Record):
    """One row of the mount table, later rows lie over earlier ones."""

    target: str
    kind: str
    source: str

    @property
    def ours(self) -> bool:
        return self.source == SOURCE and self.kind in ("overlay", "fuse", f"fuse.{SOURCE}")


def mount_table() -> list[TableRow]:
    """This process's mounts."""
    with open("/proc/self/mountinfo", "rb") as file:
        lines = file.read().splitlines()
    rows = []
    for line in lines:
        left, _, right = line.partition(b" - ")
        kind, source = right.split(b" ")[:2]
        rows.append(TableRow(_unescape(left.split(b" ")[4]), os.fsdecode(kind), _unescape(source)))
    return rows


def _unescape(field: bytes) -> str:
    if b"\\" not in field:
        return os.fsdecode(field)
    parts = field.split(b"\\")
    return os.fsdecode(parts[0] + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in parts[1:]))


# ---------------------------------------------------------------------- what is mounted


class MountRecords:
    """The records of one run directory. All changes happen under one flock, which dies with its process."""

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        self._path = f"{os.fspath(run_dir)}/mounts"
        try:
            os.makedirs(self._path, 0o700, exist_ok=True)
        except PermissionError as error:
            raise MountError(
                f"{os.fspath(run_dir)}: permission denied", hint="--run-dir or ONESEC_RUN names another directory"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def add(self, record: MountRecord) -> None:
        path = f"{self._path}/{record.id}.json"
        fd = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            json.dump(as_dict(record), file)
        os.rename(f"{path}.tmp", path)

    def remove(self, record: MountRecord) -> None:
        with suppress(FileNotFoundError):
            os.unlink(f"{self._path}/{record.id}.json")

    def all(self) -> list[MountRecord]:
        """Every readable record. A broken one counts for nothing: the mount table is the truth."""
        records = []
        for name in sorted(os.listdir(self._path)):
            if name.endswith(".json"):
                with suppress(OSError, ValueError, TypeError), open(f"{self._path}/{name}", "rb") as file:
                    records.append(MountRecord(**json.load(file)))
        return records

    def prune(self) -> list[MountRecord]:
        """Drops and returns the records whose mount is gone (somebody called umount(8)). Call it inside ``locked``."""
        targets = {row.target for row in mount_table() if row.ours}
        stale = [record for record in self.all() if record.target not in targets]
        for record in stale:
            self.remove(record)
        return stale


def unmount(path: str) -> str:
    """Undoes the topmost mount of ours on a path; works without its server, its record, and on a broken connection.

    A user who is not root has a portable mount undone by fusermount3, which knows who made it.
    """
    real = os.path.realpath(path)
    rows = [row for row in mount_table() if row.target == real]
    if not rows or not rows[-1].ours:
        raise MountError(f"{path}: got no onesec mount")
    try:
        cext.umount2(real, _UMOUNT_NOFOLLOW)
    except PermissionError as error:
        if rows[-1].kind == "overlay":
            raise MountError(f"{path}: not permitted", hint="a kernel mount is undone by root") from error
        _fusermount(path, real)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _in_use(path) from error
        raise MountError(f"{path}: {os.strerror(error.errno or 0).lower()}") from error
    return real


def _fusermount(path: str, real: str) -> None:
    import subprocess

    try:
        done = subprocess.run(["fusermount3", "-u", "--", real], capture_output=True, text=True, errors="replace")
    except FileNotFoundError as error:
        raise UnsupportedError("fusermount3: not installed", hint="apt-get install fuse3") from error
    if done.returncode != 0:
        words = done.stderr.strip().rpartition(": ")[2].lower()
        raise _in_use(path) if "busy" in words else MountError(f"{path}: {words or 'fusermount3 failed'}")


def _in_use(path: str) -> MountError:
    return MountError(f"{path}: in use", hint="end the processes that use it; `fuser -vm` names them")


def set_read_ahead(tree: int, size_kb: int) -> None:
    """Of the object mount. Without sysfs the kernel's 128 KiB stay: slower, not wrong."""
    major, minor = cext.device_of(tree)
    with suppress(OSError), open(f"/sys/class/bdi/{major}:{minor}/read_ahead_kb", "w") as file:
        file.write(str(size_kb))


def check_objects(objects: int) -> None:
    """The data-only lower has to be a directory: anything else would read as missing files."""
    try:
        os.close(os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=objects))
    except OSError as error:
        raise CorruptError(f"object mount: {os.strerror(error.errno or 0).lower()}") from error


def mount_image(lowers: Lowers, target: int, *, name: str) -> None:
    """Mounts an image, its EROFS mount over the object mount, read-only on an open directory. All are borrowed.

    nosuid and nodev: the tree is reachable by every user of the host.
    """
    with ExitStack() as stack:
        tree = overlay(lowers, name=name, attributes=ATTR_NOSUID | ATTR_NODEV)
        stack.callback(os.close, tree)
        attach(tree, target)
