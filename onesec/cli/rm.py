"""`onesec rm REF…`: forgets names; `gc` then frees the space."""

from __future__ import annotations

import argparse

from cext.errors import UsageError
from lazyfs.learned import forget
from onesec.config import Config
from registry.layout import Layout
from registry.reference import Reference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("references", metavar="REF", nargs="+", help="a local image")


def run(arguments: argparse.Namespace, config: Config) -> int:
    references = [Reference.parse(text) for text in arguments.references]
    for reference in references:
        if reference.digest is not None:
            raise UsageError(f"rm {reference}: want a name; gc deletes what has none")
    layout = Layout.open(config.root)
    for reference in references:
        layout.untag(reference)
    forget(config.root, {tag.manifest.digest.hex for tag in layout.tags()})
    return 0
