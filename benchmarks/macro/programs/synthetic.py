"""Puts a made-up image of many files into a layout: an index as a real one has it, and no packs.

Prints the bytes that the files would have.

python -m benchmarks.macro.programs.synthetic ROOT FILES REF
"""

from __future__ import annotations

import sys

import cext
from benchmarks.macro.programs.ingest import CONFIG
from benchmarks.micro.synthetic import make
from registry.image import put_index, tables_blobs
from registry.layout import Layout
from registry.model import EROFS, LAYER, OCI_CONFIG, TABLES, Manifest, manifest_bytes
from registry.reference import Reference


def main() -> None:
    root, files, name = sys.argv[1:]
    made = make(int(files))
    erofs, tables = cext.encode_image(made.tree, made.packs)
    layout = Layout.open(root)
    with layout.writing():
        raw = manifest_bytes(
            config=layout.put(CONFIG, OCI_CONFIG),
            erofs=put_index(layout, erofs, EROFS),
            tables=put_index(layout, tables, TABLES),
            layers=[put_index(layout, made.tree, LAYER)],
            packs=tables_blobs(tables),
            size=made.content,
            files=int(files),
        )
        manifest = Manifest.parse(raw)
        layout.put(raw, manifest.media_type)
        layout.tag(Reference.parse(name), manifest)
    print(made.content)


if __name__ == "__main__":
    main()
