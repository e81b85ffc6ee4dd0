"""``onesec mount``: an image's file tree, read-only, at a directory."""

from __future__ import annotations

import argparse
import os

from onesec.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="REF", help="image")
    parser.add_argument("directory", metavar="DIR", help="an existing directory")


def run(arguments: argparse.Namespace, config: Config) -> int:
    from lazyfs import mount
    from lazyfs.probe import probe
    from onesec.images import served_image

    probe().require()
    records = mount.MountRecords(config.run_dir)
    with records.locked(), mount.target_directory(arguments.directory) as (real, target):
        records.prune()
        with served_image(arguments.reference, config) as served:
            image = served.image
            mount.mount_image(served.metadata, served.objects, target, name=image.name)
            record = mount.MountRecord(os.urandom(8).hex(), real, image.name, str(image.digest), image.domain, "kernel")
            try:
                records.add(record)
                served.keep(real)
            except BaseException:
                records.remove(record)
                mount.unmount(real)
                raise
    return 0
