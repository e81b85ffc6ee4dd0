"""`onesec gc`: deletes what no name and no mount needs."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from lazyfs.learned import forget
from onesec.config import Config
from registry.layout import Layout
from registry.upkeep import collect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    return


def run(arguments: argparse.Namespace, config: Config) -> int:
    layout = Layout.open(config.root)
    done = collect(layout)
    forget(config.root, {tag.manifest.digest.hex for tag in layout.tags()})
    if config.json:
        print(json.dumps(asdict(done)))
    else:
        print(f"deleted {done.blobs} blobs, {done.bytes} bytes; kept {done.kept}")
    return 0
