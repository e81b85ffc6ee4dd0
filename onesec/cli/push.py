"""`onesec push REF REMOTE`: an image goes to a registry, without what that has already."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from imagebuilder import progress
from onesec.config import Config
from registry.layout import Layout
from registry.reference import Reference

if TYPE_CHECKING:
    from registry.transfer import Pushed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="REF", help="a local image")
    parser.add_argument("remote", metavar="REMOTE", help="HOST/NAME[:TAG]")


def run(arguments: argparse.Namespace, config: Config) -> int:
    remote = Reference.parse(arguments.remote).require_host()
    done = push(Reference.parse(arguments.reference), remote, config)
    if config.json:
        print(json.dumps({"name": str(remote), "digest": str(done.manifest.digest), **record(done)}))
    else:
        print(f"{remote}: {summary(done)}")
        print(done.manifest.digest)
    return 0


def push(reference: Reference, remote: Reference, config: Config) -> Pushed:
    """Sends a local image to remote, a tag of a registry."""
    layout = Layout.open(config.root)
    image, lease = layout.resolve_leased(reference)
    with lease, progress.for_user() as shown:
        image.manifest.require_image()
        from onesec.remote import with_client
        from registry.transfer import push_image

        return with_client(
            config, lambda client: push_image(layout, image, client.repository(remote, push=True), shown)
        )


def record(done: Pushed) -> dict[str, Any]:
    return {"sent": done.sent, "bytes": done.size, "mounted": done.mounted, "known": done.known}


def summary(done: Pushed) -> str:
    mounted = f", {done.mounted} mounted" if done.mounted else ""
    return f"{done.sent} blobs sent, {progress.human(done.size)}{mounted}; {done.known} were there"
