"""Running a plan: one nursery; steps start when those they run on top of are done; each is remembered under its key.

Threads do what blocks. Downloads, solving and mmdebstrap overlap; writing into the layout does not (`_writing`): the
ingest uses every core by itself, and the chunk map then has one user at a time. Cancelling reaches a thread at its next
report of progress.
"""

from __future__ import annotations

import os
import select
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import IO, Any

import trio

from cext import blake3
from cext.errors import UnsupportedError, UsageError
from imagebuilder import debian, fetch, importer, local, python, solve
from imagebuilder.bootpack import with_first_boot_pack
from imagebuilder.image import CallSite, CopyLocal, DebianBase, OciBase, PipInstall, Run
from imagebuilder.layer import (
    DIRECTORY,
    FILE,
    IMPLICIT,
    SYMLINK,
    LayerWriter,
    Workshop,
    assemble_image,
    entry,
)
from imagebuilder.pip_settings import PipSettings
from imagebuilder.plan import Context, Inputs, Plan, Step, image_config, settings_for
from imagebuilder.progress import Progress
from imagebuilder.sandbox import HOST_FILES, Command, Sandbox
from imagebuilder.settle import settle
from imagebuilder.steps import StepResult, recall
from imagebuilder.streams import Plain, Source
from imagebuilder.unpack import read_layer
from imagebuilder.upper import Base, layer_from_overlay_upper
from imagebuilder.wheel import Placed, Places, Wheel
from registry.model import LayerRecord, Manifest, dump_json, parse_json

_PARALLEL = 3  # steps, and downloads of one step
_WHEEL_CONTEXT = "onesec 2026 wheel layer v1"
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@dataclass(frozen=True, slots=True)
class World:
    """What a build has at hand. sandbox: None on a machine that has none. open_tree: the merged tree of layers.

    environment: of the host. secrets: host path of each id. boot_pack: whether the image gets a guessed one.
    """

    workshop: Workshop
    progress: Progress
    open_tree: Callable[[Sequence[LayerRecord]], Base]
    environment: Mapping[str, str] = field(repr=False)
    sandbox: Sandbox | None = None
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    use_cache: bool = True
    boot_pack: bool = True


def check_secrets(plan: Plan, secrets: Mapping[str, str]) -> None:
    """Before anything is built. Raises UsageError."""
    for step in plan.steps:
        if isinstance(step.action, Run):
            for name in step.action.secrets:
                if name not in secrets:
                    raise UsageError(
                        f"{step.where}: run: secret {name!r} was not given", hint=f"--secret id={name},src=FILE"
                    )


async def build(plan: Plan, inputs: Inputs, world: World) -> tuple[Manifest, str]:
    """The image's manifest, untagged, and its trust domain. Call it inside `Layout.writing`."""
    check_secrets(plan, world.secrets)
    results = await _Execution(plan, inputs, world).run()
    base = results[0]
    config = dump_json(image_config(base.config, plan.context, inputs.architecture))
    layers = [layer for result in results for layer in result.layers]
    world.progress.stage("writing the index")

    def finish(manifest: Manifest, tree: bytes) -> Manifest:
        return with_first_boot_pack(world.workshop, manifest, tree, config, world.progress, use_cache=world.use_cache)

    manifest = await trio.to_thread.run_sync(
        lambda: assemble_image(world.workshop.layout, layers, config, finish=finish if world.boot_pack else None)
    )
    return manifest, base.domain


class _Execution:
    def __init__(self, plan: Plan, inputs: Inputs, world: World) -> None:
        self._plan = plan
        self._inputs = inputs
        self._world = world
        self._layout = world.workshop.layout
        self._progress = _Cancellable(world.progress)
        self._done = [trio.Event() for _ in plan.steps]
        self._results: dict[int, StepResult] = {}
        self._slots = trio.CapacityLimiter(_PARALLEL)
        self._writing = trio.Lock()

    async def run(self) -> list[StepResult]:
        async with trio.open_nursery() as nursery:
            for step in self._plan.steps:
                nursery.start_soon(self._step, step)
        return [self._results[step.number] for step in self._plan.steps]

    async def _step(self, step: Step) -> None:
        for number in step.needs:
            await self._done[number].wait()
        result = recall(self._layout, step) if self._world.use_cache else None
        if result is None:
            async with self._slots:
                self._progress.stage(step.title)
                result = await self._make(step)
            await trio.to_thread.run_sync(self._layout.remember_bytes, step.key, result.dump())
        self._results[step.number] = result
        self._done[step.number].set()

    async def _make(self, step: Step) -> StepResult:
        match step.action:
            case OciBase() as base:
                return await self._oci(base)
            case DebianBase() as base:
                return await self._debian(base)
            case CopyLocal() as copy:
                planned = self._inputs.trees[copy]
                return StepResult((await self._layer(lambda layer: copy_tree(layer, copy, step.where, planned)),))
            case PipInstall() as install:
                return await self._pip(install, step)
            case Run() as commands:
                return await self._run(commands, step)

    async def _blocking(self, call: Callable[[], Any]) -> Any:
        return await trio.to_thread.run_sync(call)

    async def _layer(self, fill: Callable[[LayerWriter], None]) -> LayerRecord:
        async with self._writing:
            return await trio.to_thread.run_sync(self._world.workshop.make, fill)

    # ------------------------------------------------------------------ bases

    async def _oci(self, base: OciBase) -> StepResult:
        def convert() -> importer.Converted:
            return importer.convert_source(self._world.workshop, base.source, progress=self._progress)

        async with self._writing:
            done = await trio.to_thread.run_sync(convert)
        return StepResult(done.layers, parse_json(done.config, "config of the base"), done.domain)

    async def _debian(self, base: DebianBase) -> StepResult:
        release = debian.release_for(base.python_version)
        with tempfile.TemporaryFile(dir=self._layout.images, prefix="tmp-debian-") as file:

            def make() -> None:
                with debian.tar_stream(release, base.packages, self._world.environment) as stream:
                    for data in _pieces(stream, self._progress):
                        file.write(data)

            await self._blocking(make)
            file.seek(0)
            record = await self._layer(lambda layer: read_layer(layer, Plain(Source(file)), self._progress))
        return StepResult((record,))

    # ------------------------------------------------------------------ packages

    async def _pip(self, install: PipInstall, step: Step) -> StepResult:
        below = self._below(step)
        home = await self._blocking(lambda: self._python(below))
        settings = settings_for(install, self._inputs.settings)
        text = self._inputs.texts.get(install.requirements_file or "", "")
        question = solve.Question((*install.requirements, *text.splitlines()), home.target, settings)
        pinned = await self._blocking(lambda: solve.solve(question, self._world.environment))
        records: dict[str, LayerRecord] = {}
        downloads = trio.CapacityLimiter(_PARALLEL)

        async def one(wheel: solve.PinnedWheel) -> None:
            async with downloads:
                records[wheel.name] = await self._wheel(wheel, home, settings)

        async with trio.open_nursery() as nursery:
            for wheel in pinned:
                nursery.start_soon(one, wheel)
        layers = tuple(records[wheel.name] for wheel in pinned)
        return StepResult((*layers, await self._bytecode(below, layers, home)))

    def _below(self, step: Step) -> list[LayerRecord]:
        return [layer for number in step.needs for layer in self._results[number].layers]

    def _python(self, below: Sequence[LayerRecord]) -> python.Python:
        base = self._plan.steps[0].action
        if isinstance(base, DebianBase):
            return python.of_debian(debian.release_for(base.python_version), self._inputs.architecture)
        return python.of_tree(self._world.open_tree(below).names, self._inputs.architecture)

    async def _wheel(self, wheel: solve.PinnedWheel, home: python.Python, settings: PipSettings) -> LayerRecord:
        """Each wheel is made once for a place, whatever image asked first."""
        key = "wheel-" + wheel_key(wheel.sha256, home.places)
        record = self._layout.recall(key)
        if record is not None:
            return record
        environment = self._world.environment
        urls = filter(None, (settings.index_url, *settings.extra_index_url, *settings.find_links))
        cert, credentials = fetch.certificate(environment, settings.cert), fetch.credentials_for(urls, environment)
        with ExitStack() as stack:
            fd: int = await self._blocking(
                lambda: stack.enter_context(
                    fetch.wheel_file(
                        wheel,
                        cert=cert,
                        credentials=credentials,
                        directory=self._layout.images,
                        progress=self._progress.advance,
                    )
                )
            )
            opened = stack.enter_context(Wheel(fd, wheel.filename))
            placed = opened.place(home.places)
            record = await self._layer(lambda layer: _place(layer, opened, placed, self._progress))
        await self._blocking(lambda: self._layout.remember(key, record))
        return record

    async def _bytecode(
        self, below: Sequence[LayerRecord], layers: Sequence[LayerRecord], home: python.Python
    ) -> LayerRecord:
        """A layer with the .pyc of all the wheels, made by the image's own Python. Unchecked: their sources are in the
        same image, and an import then does not even stat them.
        """
        compile_all = (
            home.places.python, "-I", "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash",
            "/" + home.places.packages,
        )  # fmt: skip
        key = (
            "bytecode-"
            + blake3(
                "\n".join((*compile_all, *(str(layer.index.digest) for layer in layers))).encode(),
                context=_WHEEL_CONTEXT,
            ).hex()
        )
        record = self._layout.recall(key)
        if record is None:
            # status 1: some file is no valid Python for this version, as pip would leave it too
            quiet = ("/bin/sh", "-c", '"$@" >/dev/null || test $? -eq 1', "sh", *compile_all)
            context = Context(env=(("PYTHONHASHSEED", "0"),), workdir="/", user="0:0")
            record = await self._sandboxed([*below, *layers], [Command(quiet, context)])
            await self._blocking(lambda: self._layout.remember(key, record))
        return record

    # ------------------------------------------------------------------ commands

    async def _run(self, action: Run, step: Step) -> StepResult:
        secrets = {name: self._world.secrets[name] for name in action.secrets}
        environment = self._world.environment
        variables = {name: environment[name] for name in _PROXIES if environment.get(name)}
        files: dict[str, bytes] = {}
        base = self._plan.steps[0].action
        if isinstance(base, DebianBase):
            release = debian.release_for(base.python_version)
            files = await self._blocking(lambda: debian.step_files(release, HOST_FILES))
            variables |= {"APT_CONFIG": f"{HOST_FILES}/apt.conf", "DEBIAN_FRONTEND": "noninteractive"}
        commands = [
            Command(("/bin/sh", "-ec", text), step.context, secrets, files, variables) for text in action.commands
        ]
        return StepResult((await self._sandboxed(self._below(step), commands),))

    async def _sandboxed(self, below: Sequence[LayerRecord], commands: Sequence[Command]) -> LayerRecord:
        sandbox, workshop = self._world.sandbox, self._world.workshop
        if sandbox is None:
            raise UnsupportedError("this image needs commands to run while it is built, which this machine cannot do")
        config = dump_json(image_config(self._results[0].config, Context(), self._inputs.architecture))
        domain = self._results[0].domain
        packages = isinstance(self._plan.steps[0].action, DebianBase)

        def work() -> LayerRecord:
            manifest = assemble_image(workshop.layout, below, config)
            began = time.time()
            with sandbox.run(manifest, commands, domain=domain) as changes:
                settle(changes.upper, changes.base, began, packages=packages)
                return layer_from_overlay_upper(
                    workshop, changes.upper, changes.merged, changes.base, packs=changes.packs, note=self._progress.note
                )

        async with self._writing, trio.open_nursery() as nursery:
            watch = _Watch(sandbox.stop)
            nursery.start_soon(watch.run)
            made = await trio.to_thread.run_sync(work)
            watch.done = True
            nursery.cancel_scope.cancel()
        return made


class _Watch:
    """A thread that waits for a command would learn of a cancellation only by the end of the command."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self.done = False

    async def run(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            if not self.done:
                self._stop()


class _Cancellable:
    """Progress that ends the thread it is called from, once the build is cancelled."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def _check(self) -> None:
        try:
            trio.from_thread.check_cancelled()
        except RuntimeError:
            return  # not in a thread of trio's

    def stage(self, name: str, total: int | None = None) -> None:
        self._progress.stage(name, total)

    def advance(self, size: int = 0, files: int = 0) -> None:
        self._check()
        self._progress.advance(size, files)

    def note(self, text: str) -> None:
        self._progress.note(text)


def _pieces(stream: IO[bytes], progress: Progress) -> Iterator[bytes]:
    """What comes out of a pipe. Asks for a cancellation while it waits: a program may say nothing for a minute."""
    while True:
        while not select.select([stream], [], [], 0.2)[0]:
            progress.advance()
        data = os.read(stream.fileno(), 1 << 20)
        if not data:
            return
        progress.advance(len(data))
        yield data


def wheel_key(sha256: str, places: Places) -> str:
    parts = (sha256, places.python, places.packages, places.scripts, places.data, places.headers)
    return blake3("\n".join(parts).encode(), context=_WHEEL_CONTEXT).hex()


def _place(layer: LayerWriter, wheel: Wheel, placed: Sequence[Placed], progress: Progress) -> None:
    for file in placed:
        made = entry(FILE, mode=0o755 if file.executable else 0o644, mtime=(file.mtime, 0))
        progress.advance(file.size, 1)
        if file.size <= 64 << 10:
            layer.add(file.path.encode(), made, b"".join(wheel.read(file.content)))
        else:
            layer.add(file.path.encode(), made, wheel.read(file.content))


def copy_tree(layer: LayerWriter, copy: CopyLocal, where: CallSite, planned: bytes) -> None:
    """planned: the digest that the step's key has. What was read has to be what was hashed."""
    read = local.TreeDigest()
    target = copy.target.strip("/")
    for found in local.walk(copy, where):
        if not found.path and found.kind == "file" and copy.target.endswith("/"):
            target = "/".join(filter(None, (target, os.path.basename(copy.source))))
        path = b"/".join(filter(None, (os.fsencode(target), found.path)))
        if found.kind == "file":
            made = entry(FILE, mode=found.permissions, mtime=(local.TIME, 0))
            layer.add(path, made, read.reading(found))
            continue
        read.add(found)
        if found.kind == "directory":
            # the place it is copied to may exist below; what is inside it is ours
            flags = 0 if found.path else IMPLICIT
            layer.add(path, entry(DIRECTORY, mode=0o755, mtime=(0 if flags else local.TIME, 0), flags=flags))
        else:
            made = entry(SYMLINK, mode=0o777, mtime=(local.TIME, 0), target=found.target, size=len(found.target))
            layer.add(path, made)
    if read.digest() != planned:
        raise UsageError(f"{where}: copy_local: {copy.source}: changed while the image was built", hint="build again")
