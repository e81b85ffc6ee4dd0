"""A digest counts only once it was parsed, and content only once it was hashed; a document has one reading.

CVE-2024-3727 (containers/image: a digest as a path), CVE-2021-41190 (OCI: manifest or index), CVE-2026-95839.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Onesec
from tests.support.hostile import archive, assert_refused, canaries, member
from tests.support.oci import oci_layout, put, write_index

GOOD = archive(member("a", b"x"))
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
HEX = "0" * 64

DIGESTS: dict[str, Any] = {
    "a path, CVE-2024-3727": "sha256:../../../../etc/passwd",
    "a path behind 64 digits": f"sha256:{HEX}/../../index.json",
    "a path instead": "/etc/passwd",
    "upper case": "sha256:" + "A" * 64,
    "one digit short": "sha256:" + "a" * 63,
    "one digit long": "sha256:" + "a" * 65,
    "another algorithm": "sha512:" + "a" * 128,
    "a weak algorithm": "md5:" + "a" * 32,
    "no algorithm": "a" * 64,
    "digits of another script": "sha256:" + "٣" * 64,
    "a line end": f"sha256:{HEX}\n",
    "a NUL": f"sha256:{HEX[:-1]}\0",
    "spaces": f" sha256:{HEX}",
    "nothing": "",
    "a number": 5,
    "a list": [f"sha256:{HEX}"],
    "null": None,
    "a mapping": {"algorithm": "sha256"},
}


def rewritten(layout: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the manifest of a layout and everything that pins it: its own digests are right afterwards."""
    index = json.loads((layout / "index.json").read_text())
    digest = index["manifests"][0]["digest"].removeprefix("sha256:")
    manifest = json.loads((layout / "blobs/sha256" / digest).read_text())
    change(manifest)
    index["manifests"][0]["digest"], index["manifests"][0]["size"] = put(layout, json.dumps(manifest).encode())
    write_index(layout, index)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    oci_layout(tmp_path / "hostile", GOOD, {})
    return tmp_path / "hostile"


def imported(layout: Path) -> tuple[Onesec, Any]:
    onesec = Onesec(layout.parent)
    return onesec, onesec.here("import", f"oci:{layout}:t", "-t", "hostile")


@pytest.mark.parametrize("place", ["index", "config", "layer"])
@pytest.mark.parametrize("case", DIGESTS)
def test_a_digest_that_is_none_is_refused_wherever_it_stands(case: str, place: str, layout: Path) -> None:
    if place == "index":
        index = json.loads((layout / "index.json").read_text())
        index["manifests"][0]["digest"] = DIGESTS[case]
        write_index(layout, index)
    else:

        def change(manifest: dict[str, Any]) -> None:
            target = manifest["config"] if place == "config" else manifest["layers"][0]
            target["digest"] = DIGESTS[case]

        rewritten(layout, change)
    with canaries(layout.parent):
        assert_refused(*imported(layout), "digest")


@pytest.mark.parametrize("case", [name for name, value in DIGESTS.items() if isinstance(value, str)])
def test_a_reference_with_such_a_digest_is_refused_before_anything_is_opened(case: str, tmp_path: Path) -> None:
    onesec = Onesec(tmp_path)
    said = onesec.here("inspect", f"app@{DIGESTS[case]}")
    assert said.status in (1, 2), said
    assert said.error
    assert not onesec.root.exists() or not list((onesec.root / "leases").iterdir())


def first_blob(layout: Path, kind: str) -> Path:
    index = json.loads((layout / "index.json").read_text())
    manifest = layout.joinpath("blobs/sha256", index["manifests"][0]["digest"].removeprefix("sha256:"))
    if kind == "manifest":
        return manifest
    document = json.loads(manifest.read_text())
    found = document["config"] if kind == "config" else document["layers"][0]
    return layout.joinpath("blobs/sha256", found["digest"].removeprefix("sha256:"))


@pytest.mark.parametrize("kind", ["manifest", "config", "layer"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "empty", "replaced", "a link"])
def test_content_that_is_not_what_the_digest_says_is_refused(damage: str, kind: str, layout: Path) -> None:
    path = first_blob(layout, kind)
    data = path.read_bytes()
    changed = {
        "flipped": data[:-1] + bytes([data[-1] ^ 1]),
        "cut": data[:-1],
        "longer": data + b" ",
        "empty": b"",
        "replaced": archive(member("evil", b"x")) if kind == "layer" else b"{}",
        "a link": data,
    }[damage]
    path.write_bytes(changed)
    if damage == "a link":
        (layout / "elsewhere").write_bytes(data)
        path.unlink()
        path.symlink_to(layout / "elsewhere")
    with canaries(layout.parent):
        assert_refused(*imported(layout))


def claims(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest[key] = value

    return change


BLOB = {"mediaType": MANIFEST, "digest": f"sha256:{HEX}", "size": 5}
READINGS: dict[str, Callable[[dict[str, Any]], None]] = {
    "manifest and index, CVE-2021-41190": claims("manifests", [BLOB]),
    "manifest of the first schema as well": claims("fsLayers", []),
    "an index by its type": claims("mediaType", "application/vnd.oci.image.index.v1+json"),
    "another schema": claims("schemaVersion", 1),
    "a schema that is no number": claims("schemaVersion", "2"),
    "layers that are no list": claims("layers", {"0": BLOB}),
    "no layers at all": claims("layers", None),
    "a config that is a list": claims("config", []),
    "a negative size": lambda manifest: manifest["layers"][0].update(size=-1),
    "a size that is true": lambda manifest: manifest["layers"][0].update(size=True),
    "a size beyond every disk": lambda manifest: manifest["layers"][0].update(size=1 << 63),
    "a fraction as size": lambda manifest: manifest["layers"][0].update(size=1.5),
    "a size that is too small": lambda manifest: manifest["layers"][0].update(size=5),
    "annotations that are a list": claims("annotations", ["x"]),
    "an annotation that is a number": claims("annotations", {"x": 5}),
    "a media type with a line end": lambda manifest: manifest["layers"][0].update(mediaType="a/b\nc"),
}


@pytest.mark.parametrize("case", READINGS)
def test_a_document_with_two_readings_or_wrong_types_is_refused(case: str, layout: Path) -> None:
    rewritten(layout, READINGS[case])
    assert_refused(*imported(layout))


def test_a_layer_whose_diff_id_lies_is_refused(tmp_path: Path) -> None:
    oci_layout(tmp_path / "hostile", GOOD, {}, plain=archive(member("other", b"x")))
    assert_refused(*imported(tmp_path / "hostile"), "diff_id")


def test_a_key_that_occurs_twice_is_refused(layout: Path) -> None:
    raw = first_blob(layout, "manifest").read_bytes()
    doubled = raw.replace(b'"schemaVersion": 2', b'"schemaVersion": 2, "layers": [], "schemaVersion": 2', 1)
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0]["digest"], index["manifests"][0]["size"] = put(layout, doubled)
    write_index(layout, index)
    assert_refused(*imported(layout), "twice")


def test_the_layouts_own_index_is_not_trusted_either(layout: Path) -> None:
    onesec, said = imported(layout)
    assert said.status == 0, said
    path = onesec.root / "images/index.json"
    good = json.loads(path.read_text())
    for value in DIGESTS.values():
        good["manifests"][0]["digest"] = value
        path.write_text(json.dumps(good))
        for words in (["images"], ["inspect", "hostile"], ["verify", "hostile"], ["gc"], ["rm", "hostile"]):
            said = onesec.here(*words)
            assert said.status == 1, (words, said)
            assert "digest" in said.error
