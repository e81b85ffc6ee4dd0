"""`onesec gc`: deletes what no name and no mount needs."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from onesec.config import Config
from registry.layout import Layout
from registry.upkeep import collect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    return


def run(arguments: argparse.Namespace, config: Config) -> int:
    done = collect(Layout.open(config.root))
    if config.json:
        print(json.dumps(asdict(done)))
    else:
        print(f"deleted {done.blobs} blobs, {done.bytes} bytes; kept {done.kept}")
    return 0
