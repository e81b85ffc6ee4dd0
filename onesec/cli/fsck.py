"""`onesec fsck`: checks the local store and layout, repairs what can be made again."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace

from cache.stores import check_all
from imagebuilder import progress
from onesec.cli.main import printable
from onesec.config import Config
from registry.layout import Layout
from registry.upkeep import check_layout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    return


def run(arguments: argparse.Namespace, config: Config) -> int:
    layout = Layout.open(config.root)
    with progress.for_user() as shown:
        shown.stage("checking the layout")
        done = check_layout(layout, shown.advance)
        shown.stage("checking the chunk store")
        repaired, notes = check_all(layout.cache_path("store"))
        done = replace(done, repaired=done.repaired + repaired)
    if config.json:
        print(json.dumps({**asdict(done), "notes": notes}))
    else:
        for line in notes:
            print(printable(line))
        for line in done.repaired:
            print(f"repaired: {printable(line)}")
        for line in done.problems:
            print(f"problem: {printable(line)}")
        elsewhere = f"; {done.remote} blobs are only at registries" if done.remote else ""
        print(
            f"{done.blobs} blobs, {done.bytes} bytes; {len(done.problems)} problems, {len(done.repaired)} repaired, "
            f"{done.unreferenced} blobs that gc would delete{elsewhere}"
        )
    return 1 if done.problems else 0
