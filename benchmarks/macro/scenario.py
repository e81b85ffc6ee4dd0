"""What a scenario is given, and what it gives back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.macro.figures import Figure
from benchmarks.macro.harness import CHECKOUT, Measurement, summary


class ScenarioError(RuntimeError):
    """A scenario cannot run here, or a step of its preparation failed."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a scenario works. Everything it makes lies below `directory`, on the disk that is measured.

    quick: tiny data, to see that everything runs; the figures mean nothing. rounds: of each contender.
    """

    directory: Path
    quick: bool = False
    rounds: int = 5

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def results_kind(self) -> str:
        return "quick" if self.quick else "full"

    def path(self, name: str) -> Path:
        return self.directory / name

    def onesec(self, *words: str | Path, root: Path | None = None, run: str = "run") -> list[str]:
        """A call of the command with this place's root and run directory, as an installed script makes it."""
        return [
            sys.executable,
            "-c",
            "from onesec.cli.main import entry; entry()",
            "--root",
            str(root or self.root),
            "--run-dir",
            str(self.directory / run),
            *map(str, words),
        ]

    def program(self, name: str, *words: str | Path) -> list[str]:
        """A call of one of this package's programs."""
        return [sys.executable, "-m", f"benchmarks.macro.programs.{name}", *map(str, words)]

    def call(self, argv: Sequence[str | Path], *, environment: Mapping[str, str] | None = None) -> str:
        """Runs a step of the preparation, its messages passing through. Returns what it printed.

        Raises ScenarioError.
        """
        done = subprocess.run(
            [str(word) for word in argv],
            cwd=CHECKOUT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ScenarioError(f"{' '.join(str(word) for word in argv[:6])} …: exit status {done.returncode}")
        return done.stdout

    @contextmanager
    def mounted(self, reference: str, *, root: Path | None = None, mode: str = "kernel") -> Iterator[Path]:
        """The image's tree, mounted for the block."""
        with self._mounted(f"mounted-{reference}-{mode}", ["--mode", mode, reference], root, "run", {}) as target:
            yield target

    @contextmanager
    def mounted_without_store(self, reference: str) -> Iterator[Path]:
        """The same behind an object server of its own that keeps no local store: every read comes out of packs."""
        settings = self.path("no-store.toml")
        settings.write_text('[store]\nquota = "0"\n')
        environment = {"ONESEC_CONFIG": str(settings)}
        with self._mounted(f"mounted-{reference}-no-store", [reference], None, "run-no-store", environment) as target:
            yield target

    @contextmanager
    def _mounted(
        self, name: str, words: Sequence[str], root: Path | None, run: str, environment: Mapping[str, str]
    ) -> Iterator[Path]:
        target = self.path(name)
        target.mkdir(parents=True, exist_ok=True)
        self.call(self.onesec("mount", *words, target, root=root, run=run), environment=environment)
        try:
            yield target
        finally:
            self.call(self.onesec("umount", target, root=root, run=run))

    def manifest(self, reference: str, *, root: Path | None = None) -> dict[str, object]:
        """`inspect --json` of an image."""
        found: dict[str, object] = json.loads(self.call(self.onesec("inspect", "--json", reference, root=root)))
        return found

    def packs(self, reference: str, *, root: Path | None = None) -> list[Path]:
        """The packs of an image in the layout."""
        where = (root or self.root) / "images/blobs/sha256"
        return [where / str(blob["digest"])[7:] for blob in blobs(self.manifest(reference, root=root), "pack")]

    def remove(self, *names: str) -> None:
        for name in names:
            shutil.rmtree(self.path(name), ignore_errors=True)


def blobs(inspected: Mapping[str, object], kind: str) -> list[dict[str, object]]:
    """Descriptors of an inspected image whose media type is onesec's `kind`: pack, layer, index.erofs, index.tables."""
    manifest = inspected["manifest"]
    assert isinstance(manifest, dict)
    return [blob for blob in manifest["layers"] if f"vnd.onesec.{kind}.v1" in blob["mediaType"]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a scenario found.

    conditions: what was true while it was measured (sizes, proof of coldness). notes: for the reader of the report.
    missing: contenders that could not run here, and why.
    """

    figures: Sequence[Figure]
    measurements: Mapping[str, Sequence[Measurement]] = field(default_factory=dict)
    conditions: Mapping[str, object] = field(default_factory=dict)
    notes: Sequence[str] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        return {
            "figures": [one.to_json() for one in self.figures],
            "contenders": summary(self.measurements),
            "conditions": dict(self.conditions),
            "missing": dict(self.missing),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Scenario:
    """name: as it is called for. summary: one line for --list and the report."""

    name: str
    summary: str
    run: Callable[[Place], Outcome]
