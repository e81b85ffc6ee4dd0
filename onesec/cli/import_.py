"""`onesec import SOURCE [-t REF]`: an image of another tool becomes a native one."""

from __future__ import annotations

import argparse
import json

from imagebuilder import progress
from imagebuilder.importer import import_image
from onesec.config import Config
from registry.layout import Layout
from registry.reference import Reference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="oci:DIR:TAG, docker://NAME, docker-archive:FILE, …")
    parser.add_argument("--no-boot-pack", action="store_true", help="guess none; `onesec profile` can make one later")
    parser.add_argument("-t", "--tag", metavar="REF", help="the name to give it")


def run(arguments: argparse.Namespace, config: Config) -> int:
    reference = Reference.parse(arguments.tag) if arguments.tag else None
    with progress.for_user() as shown:
        done = import_image(
            Layout.open(config.root),
            arguments.source,
            reference=reference,
            progress=shown,
            boot_pack=not arguments.no_boot_pack,
        )
    if config.json:
        record = {"name": done.name, "digest": str(done.digest), "domain": done.domain}
        print(json.dumps({**record, "layers": done.layers, "known": done.known}))
    else:
        print(f"{done.name}: {done.layers} layers, {done.known} known before")
        print(done.digest)
    return 0
