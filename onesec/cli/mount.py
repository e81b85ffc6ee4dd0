"""``onesec mount``: an image's file tree, read-only, at a directory."""

from __future__ import annotations

import argparse
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from cext.errors import UnsupportedError
from lazyfs.errors import MountError
from lazyfs.mount import mount_image
from lazyfs.mount_records import Mode, MountRecord, MountRecords
from lazyfs.mount_table import unmount
from lazyfs.mount_target import target_directory
from onesec.config import Config

if TYPE_CHECKING:
    from registry.image import OpenedImage

MODES: tuple[Mode, ...] = ("kernel", "portable")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mode",
        choices=MODES,
        help="kernel: EROFS and overlayfs, fast, as root; portable: a FUSE server, on any kernel, for any user "
        "(default: kernel where that is possible)",
    )
    parser.add_argument("reference", metavar="REF", help="image")
    parser.add_argument("directory", metavar="DIR", help="an existing directory")


def run(arguments: argparse.Namespace, config: Config) -> int:
    records = MountRecords(config.run_dir)
    ours = (config.root, config.run_dir)
    with records.locked(), target_directory(arguments.directory, ours=ours) as (real, target):
        records.prune()
        try:
            image, mode = _mount(arguments, config, real, target)
            records.add(MountRecord(os.urandom(8).hex(), real, image.name, str(image.digest), image.domain, mode))
            # It is done: an interrupt that comes from here on, until the interpreter has ended, must not say otherwise.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        except BaseException:
            with suppress(MountError):  # mostly there is nothing yet
                unmount(real)
            records.prune()
            raise
    return 0


def _mount(arguments: argparse.Namespace, config: Config, real: str, target: int) -> tuple[OpenedImage, Mode]:
    if arguments.mode != "portable":
        try:
            return _kernel(arguments.reference, config, real, target), "kernel"
        except UnsupportedError as error:
            if arguments.mode == "kernel":
                raise
            _say_why(error)
    return _portable(arguments.reference, config, real), "portable"


def _kernel(reference: str, config: Config, real: str, target: int) -> OpenedImage:
    from lazyfs.probe import probe
    from onesec.images import served_image

    probe().require()
    with served_image(reference, config) as served:
        mount_image(served.lowers, target, name=served.image.name)
        served.keep(real)
        return served.image


def _portable(reference: str, config: Config, real: str) -> OpenedImage:
    from lazyfs import portable
    from onesec.images import opened_image

    with opened_image(reference, config, whole=True) as image:
        portable.start(image, real, run_dir=config.run_dir)
        return image


def _say_why(error: UnsupportedError) -> None:
    from onesec.cli.main import complain

    complain(f"portable mount, slower than a kernel mount: {error}")
