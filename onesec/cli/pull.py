"""`onesec pull REMOTE [-t REF] [--all]`: an image's index comes from a registry; with --all its content, too."""

from __future__ import annotations

import argparse
import json

from cext.errors import UsageError
from imagebuilder import progress
from onesec.config import Config
from registry.layout import Layout
from registry.reference import Reference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("remote", metavar="REMOTE", help="HOST/NAME[:TAG][@DIGEST]")
    parser.add_argument("-t", "--tag", metavar="REF", help="the name to give it; default: its name at the registry")
    parser.add_argument("--all", action="store_true", help="everything, not the index alone")


def run(arguments: argparse.Namespace, config: Config) -> int:
    remote = Reference.parse(arguments.remote).require_host()
    name = Reference.parse(arguments.tag or remote.name)
    if name.digest is not None:
        raise UsageError(f"tag {name}: want a name without a digest")
    layout = Layout.open(config.root)
    from lazyfs.bootcheck import check_boot_pack
    from onesec.remote import with_client
    from registry.transfer import pull_image

    with progress.for_user() as shown, layout.writing():
        done = with_client(
            config,
            lambda client: pull_image(
                layout,
                client.repository(remote),
                shown,
                name=name,
                amount="all" if arguments.all else "index",
                judge=check_boot_pack,
            ),
        )
    if config.json:
        record = {"name": done.name, "digest": str(done.manifest.digest), "domain": done.domain}
        print(json.dumps({**record, "fetched": done.fetched, "bytes": done.size, "remote": done.remote}))
    else:
        rest = f"; {done.remote} stay at {remote.host}" if done.remote else ""
        print(f"{done.name}: {done.fetched} blobs fetched, {progress.human(done.size)}{rest}")
        print(done.manifest.digest)
    return 0
