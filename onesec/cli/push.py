"""`onesec push REF REMOTE`: an image goes to a registry, without what that has already."""

from __future__ import annotations

import argparse
import json

from imagebuilder import progress
from onesec.config import Config
from registry.layout import Layout
from registry.reference import Reference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="REF", help="a local image")
    parser.add_argument("remote", metavar="REMOTE", help="HOST/NAME[:TAG]")


def run(arguments: argparse.Namespace, config: Config) -> int:
    reference = Reference.parse(arguments.reference)
    remote = Reference.parse(arguments.remote).require_host()
    return push(reference, remote, config)


def push(reference: Reference, remote: Reference, config: Config) -> int:
    """Pushes and prints what became of it; the digest last."""
    layout = Layout.open(config.root)
    image, lease = layout.resolve_leased(reference)
    image.manifest.require_image()
    from onesec.remote import with_client
    from registry.transfer import push_image

    with lease, progress.for_user() as shown:
        done = with_client(
            config, lambda client: push_image(layout, image, client.repository(remote, push=True), shown)
        )
    if config.json:
        record = {"name": str(remote), "digest": str(done.manifest.digest), "sent": done.sent, "bytes": done.size}
        print(json.dumps({**record, "mounted": done.mounted, "known": done.known}))
    else:
        mounted = f", {done.mounted} mounted" if done.mounted else ""
        print(f"{remote}: {done.sent} blobs sent, {progress.human(done.size)}{mounted}; {done.known} were there")
        print(done.manifest.digest)
    return 0
