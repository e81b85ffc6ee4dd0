"""``onesec mount``: an image's file tree, read-only, at a directory."""

from __future__ import annotations

import argparse
import os
import sys

from cext.errors import UnsupportedError
from onesec.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mode", choices=("kernel", "portable"), help="default: kernel, where this kernel can")
    parser.add_argument("reference", metavar="REF", help="image")
    parser.add_argument("directory", metavar="DIR", help="an existing directory")


def run(arguments: argparse.Namespace, config: Config) -> int:
    from lazyfs.probe import probe

    features = probe()
    if arguments.mode == "kernel":
        features.require()
    missing = features.missing()
    if arguments.mode == "portable" or missing is not None:
        if arguments.mode is None:
            print(f"onesec: kernel {features.release}: got no {missing}; mounting in portable mode", file=sys.stderr)
        return _portable(arguments, config)
    return _kernel(arguments, config)


def _kernel(arguments: argparse.Namespace, config: Config) -> int:
    from lazyfs import mount
    from onesec.images import served_image

    records = mount.MountRecords(config.run_dir)
    with records.locked(), mount.target_directory(arguments.directory) as (real, target):
        records.prune()
        with served_image(arguments.reference, config) as served:
            image = served.image
            mount.mount_image(image.erofs, served.objects, target, name=image.name)
            record = mount.MountRecord(os.urandom(8).hex(), real, image.name, str(image.digest), image.domain, "kernel")
            try:
                records.add(record)
                served.keep(real)
            except BaseException:
                records.remove(record)
                mount.unmount(real)
                raise
    return 0


def _portable(arguments: argparse.Namespace, config: Config) -> int:
    from lazyfs import mount
    from onesec.images import serve_portable

    if not os.path.exists("/dev/fuse"):
        raise UnsupportedError("/dev/fuse: not there", hint="load the fuse module, or give the container /dev/fuse")
    records = mount.MountRecords(config.run_dir)
    with records.locked(), mount.target_directory(arguments.directory) as (real, _):
        records.prune()
        image = serve_portable(arguments.reference, config, real)
        try:
            records.add(mount.MountRecord(os.urandom(8).hex(), real, *image, "portable"))
        except BaseException:
            mount.unmount(real)
            raise
    return 0
