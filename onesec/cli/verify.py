"""`onesec verify REF [--deep]`: proves that an image is what its digest says."""

from __future__ import annotations

import argparse
import json

from imagebuilder import progress
from lazyfs.bootcheck import check_boot_pack
from onesec.config import Config
from registry.layout import Layout
from registry.reference import Reference
from registry.upkeep import verify_image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="REF", help="a local image")
    parser.add_argument(
        "--deep", action="store_true", help="hash every chunk of every pack too, and compare the boot pack"
    )


def run(arguments: argparse.Namespace, config: Config) -> int:
    reference = Reference.parse(arguments.reference)
    with progress.for_user() as shown:
        shown.stage(f"verifying {reference}")
        layout = Layout.open(config.root)
        done = verify_image(layout, reference, deep=arguments.deep, progress=shown.advance)
        if arguments.deep:
            check_boot_pack(layout, layout.manifest(done.digest), shown.advance)
    if config.json:
        record = {"name": done.name, "digest": str(done.digest), "blobs": done.blobs, "chunks": done.chunks}
        remote = [str(blob.digest) for blob in done.remote]
        print(json.dumps({**record, "bytes": done.bytes, "remote": remote, "at": done.at}))
    else:
        print(f"{done.name}: {done.blobs} blobs, {done.chunks} chunks, {done.bytes} bytes: as the digest says")
        if done.remote:
            size = sum(blob.size for blob in done.remote)
            print(f"not checked: {len(done.remote)} blobs, {size} bytes, that are only at {done.at}:")
            for blob in done.remote:
                print(f"  {blob.digest}  {blob.size}")
        print(done.digest)
    return 0
