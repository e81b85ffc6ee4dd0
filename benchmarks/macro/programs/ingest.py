"""Makes an image of a directory tree, all of it: packs, layer index, image index, manifest, tag.

python -m benchmarks.macro.programs.ingest ROOT TREE REF
"""

from __future__ import annotations

import json
import sys

from imagebuilder.layer import Workshop, assemble_image
from imagebuilder.trees import layer_from_tree
from registry.layout import Layout
from registry.reference import Reference

CONFIG = json.dumps(
    {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": []},
    }
).encode()


def main() -> None:
    root, tree, name = sys.argv[1:]
    layout = Layout.open(root)
    with layout.writing():
        with Workshop(layout) as workshop:
            record = layer_from_tree(workshop, tree)
        manifest = assemble_image(layout, [record], CONFIG)
        layout.tag(Reference.parse(name), manifest)
    print(manifest.digest)


if __name__ == "__main__":
    main()
