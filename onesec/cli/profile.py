"""``onesec profile``: learns which pages a start touches, and gives the image a boot pack of them."""

from __future__ import annotations

import argparse
import json
import os
import sys

from cext.errors import OnesecError
from onesec.cli import run as run_command
from onesec.config import Config

ENDED_BY_HAND = (128 + 2, 128 + 15)
"""A service has no end of its own: Ctrl-C or SIGTERM is how its profile ends."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--merge", action="store_true", help="keep the boot pack's pages, add this start's")
    run_command.add_arguments(parser)


def run(arguments: argparse.Namespace, config: Config) -> int:
    options = run_command.parse_options(arguments, dict(os.environ), terminal=os.isatty(0) and os.isatty(1))
    from lazyfs import container, profile
    from lazyfs.bootpack import merged, pages_of
    from lazyfs.probe import probe
    from lazyfs.pusher import open_boot_pack, opened
    from lazyfs.runtime_config import image_config
    from onesec.images import boot_pack_file
    from registry.image import open_image, put_boot_pack, require_packs
    from registry.layout import Layout
    from registry.reference import Reference

    probe().require()
    layout = Layout.open(config.root)
    reference = Reference.parse(arguments.reference)
    with open_image(layout, reference) as image:  # its lease keeps gc from it, and gc need not wait for the command
        require_packs(layout, image)
        with profile.profiling(
            image, run_dir=str(config.run_dir), root=str(config.root), deadline_s=config.run.deadline_s
        ) as attachment:
            status, pages = profile.profile(
                attachment,
                lambda: container.run(
                    attachment.lowers(image.erofs, name=image.name),
                    image_config(image.config),
                    options,
                    run_command.settings(config),
                    name=image.name,
                ),
            )
            if status not in (0, *ENDED_BY_HAND):
                raise OnesecError(
                    f"profile: the command ended with {status}, so the image keeps what it has",
                    hint="profile a start that works",
                )
            if arguments.merge:
                with boot_pack_file(image) as old:
                    if old is not None:
                        with opened(old) as source:
                            pages = merged([pages_of(open_boot_pack(old, source)), pages])
            made = profile.boot_pack(attachment, pages)
        with layout.writing():
            manifest = put_boot_pack(layout, image.manifest, made.head, made.frames)
            name = Reference.parse(image.name)
            layout.tag(name, manifest, domain=image.domain, remote=image.remote, instead_of=image.digest)
    _tell(config, image.name, str(manifest.digest), made.pages, made.total, len(made.head) + len(made.frames))
    return 0


def _tell(config: Config, name: str, digest: str, pages: int, total: int, packed: int) -> None:
    if config.json:
        print(json.dumps({"name": name, "digest": digest, "pages": pages, "bytes": total, "packed": packed}))
        return
    print(f"{name}: {pages} pages, {total / 1e6:.1f} MB, {packed / 1e6:.1f} MB packed", file=sys.stderr)
    print(digest)
