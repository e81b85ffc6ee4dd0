"""`onesec images`: what the local layout has."""

from __future__ import annotations

import argparse
import json

from onesec.cli.main import printable
from onesec.config import Config
from registry.layout import Layout
from registry.model import IMAGE_FILES, IMAGE_SIZE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    return


def run(arguments: argparse.Namespace, config: Config) -> int:
    layout = Layout.open(config.root)
    rows = []
    for tag in layout.tags():
        notes = layout.manifest(tag.manifest.digest).annotations
        size, files = notes.get(IMAGE_SIZE, ""), notes.get(IMAGE_FILES, "")
        rows.append((tag.name, str(tag.manifest.digest), size, files, tag.domain, tag.remote))
    keys = ("name", "digest", "size", "files", "domain", "remote")
    if config.json:
        records = [dict(zip(keys, row, strict=True)) for row in rows]
        for record in records:
            numbers = {key: record[key] or "" for key in ("size", "files")}
            record.update({key: int(text) if text.isdigit() else None for key, text in numbers.items()})  # type: ignore[misc]
        print(json.dumps(records, indent=2))
        return 0
    from imagebuilder.progress import human

    table = [("NAME", "DIGEST", "SIZE", "FILES")]
    table += [
        (name, digest[7:19], human(int(size)) if size.isdigit() else "-", files)
        for name, digest, size, files, *_ in rows
    ]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    for row in table:
        print("  ".join(printable(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0
