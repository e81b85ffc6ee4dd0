"""`onesec inspect REF`: an image's manifest and config."""

from __future__ import annotations

import argparse
import json

from onesec.cli.main import printable
from onesec.config import Config
from registry.image import parse_config
from registry.layout import Layout, total_size
from registry.model import IMAGE_FILES, IMAGE_SIZE, LAYER, PACK
from registry.reference import Reference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="REF", help="a local image")


def run(arguments: argparse.Namespace, config: Config) -> int:
    layout = Layout.open(config.root)
    resolved, lease = layout.resolve_leased(Reference.parse(arguments.reference))
    with lease:
        manifest = resolved.manifest
        image_config = parse_config(layout.read(manifest.config), f"config of {resolved.name}")
        here = [blob for blob in manifest.blobs if layout.has(blob)]
    if config.json:
        document = {
            "name": resolved.name,
            "digest": str(manifest.digest),
            "manifest": json.loads(manifest.raw),
            "config": image_config,
        }
        print(json.dumps(document, indent=2))
        return 0
    inner = image_config["config"]
    lines = {
        "name": resolved.name,
        "digest": str(manifest.digest),
        "domain": resolved.domain,
        "size": manifest.annotations.get(IMAGE_SIZE, "-"),
        "files": manifest.annotations.get(IMAGE_FILES, "-"),
        "remote": resolved.remote or "-",
        "stored": f"{total_size(here)} of {total_size(manifest.blobs)}",
        "layers": str(len(manifest.each(LAYER))),
        "packs": str(len(manifest.each(PACK))),
        "entrypoint": json.dumps(inner.get("Entrypoint") or []),
        "cmd": json.dumps(inner.get("Cmd") or []),
        "workdir": inner.get("WorkingDir") or "/",
        "user": inner.get("User") or "root",
        "env": json.dumps(inner.get("Env") or []),
    }
    for key, value in lines.items():
        print(f"{key:<11} {printable(value)}")
    return 0
