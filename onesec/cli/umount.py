"""``onesec umount``: undoes a mount, also one whose server or record is gone."""

from __future__ import annotations

import argparse

from onesec.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="where the image is mounted")


def run(arguments: argparse.Namespace, config: Config) -> int:
    from lazyfs.mount_records import MountRecords
    from lazyfs.mount_table import unmount

    records = MountRecords(config.run_dir)
    with records.locked():
        unmount(arguments.directory)
        records.prune()
    return 0
