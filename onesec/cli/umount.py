"""``onesec umount``: undoes a mount, also one whose server or record is gone; or all, with the servers that linger."""

from __future__ import annotations

import argparse

from cext.errors import OnesecError, UsageError
from onesec.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", nargs="?", help="where the image is mounted")
    parser.add_argument(
        "--all",
        action="store_true",
        help="all mounts of this run directory; servers that wait for the next container end",
    )


def run(arguments: argparse.Namespace, config: Config) -> int:
    if (arguments.directory is None) != arguments.all:
        raise UsageError("umount: want a directory or --all, and not both")
    return _all(config) if arguments.all else _one(arguments.directory, config)


def _one(directory: str, config: Config) -> int:
    from lazyfs.mount_records import MountRecords
    from lazyfs.mount_table import unmount

    records = MountRecords(config.run_dir)
    with records.locked():
        unmount(directory)
        records.prune()
    return 0


def _all(config: Config) -> int:
    """One that is in use, or that cannot be undone here, does not keep the others; the status says that it stayed."""
    from lazyfs.lingering import end_lingering
    from lazyfs.mount_records import MountRecords
    from lazyfs.mount_table import unmount
    from onesec.cli.main import complain

    status = 0
    records = MountRecords(config.run_dir)
    with records.locked():
        records.prune()
        # A mount may lie in another one; the deepest goes first.
        for record in sorted(records.all(), key=lambda one: one.target.count("/"), reverse=True):
            try:
                unmount(record.target)
            except OnesecError as error:
                complain(str(error), error.hint)
                status = 1
        records.prune()
    end_lingering(config.run_dir)
    return status
