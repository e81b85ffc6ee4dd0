"""``onesec run``: a container on the lazy tree, as podman would run it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

from cext.errors import OnesecError, UsageError
from lazyfs.container import Settings
from lazyfs.errors import ContainerError
from lazyfs.runtime_config import Network, RunOptions, Volume, image_config
from onesec.config import Config

if TYPE_CHECKING:
    from lazyfs.prefill import Prefill
    from onesec.images import Found, ServedImage

EXIT_FAILED = 125


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-e", "--env", metavar="K=V", action="append", default=[], help="K alone takes the host's")
    parser.add_argument("-v", "--volume", metavar="SRC:DST[:ro]", action="append", default=[], help="bind mount")
    parser.add_argument("-w", "--workdir", metavar="DIR", help="working directory")
    parser.add_argument("-u", "--user", metavar="USER[:GROUP]", help="names of the image, or numbers")
    parser.add_argument("--net", choices=("host", "none"), default="host", help="default: host")
    parser.add_argument("--gpus", metavar="all|N,N", action="append", default=[], help="GPUs of the host, by CDI")
    parser.add_argument("--device", metavar="NAME", action="append", default=[], help="CDI device: vendor/class=name")
    parser.add_argument("-t", "--tty", action="store_true", help="a terminal; by itself when stdin and stdout are one")
    parser.add_argument("-i", "--interactive", action="store_true", help="stdin is always passed; for podman's users")
    parser.add_argument("--timeline", metavar="FILE", help="draw where the time went, as HTML; - prints a table")
    parser.add_argument("reference", metavar="REF", help="image")
    command = parser.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER, help="default: the image's")
    command.required = False  # argparse says it is, and then names it beside a missing REF


def run(arguments: argparse.Namespace, config: Config) -> int:
    options = parse_options(arguments, dict(os.environ), terminal=os.isatty(0) and os.isatty(1))
    from lazyfs import container
    from lazyfs.prefill import Ahead
    from lazyfs.probe import probe
    from onesec.images import found_image, prefilled, serve
    from onesec.lessons import lesson

    story = _story(arguments.timeline)
    probe().require()
    with ExitStack() as stack:
        ahead = stack.enter_context(Ahead())
        found = stack.enter_context(found_image(arguments.reference, config, ahead, mark=story.mark))
        image = stack.enter_context(found.image)
        story.mark("index")
        try:
            with (
                serve(image, config, found.places) as served,
                prefilled(served, ahead) as prefill,
                lesson(served, options.command, _note) as learning,
            ):
                story.attached(served)
                status = container.run(
                    served.lowers,
                    image_config(image.config),
                    options,
                    settings(config),
                    name=image.name,
                    note=_note,
                    mark=story.mark,
                    started=lambda: _store(found),
                )
                if learning is not None:
                    learning.end(status)
                _tell(story, served, prefill, options.command, status)
                return status
        except ContainerError as error:
            _store(found)  # the image is good: who mends the words of the call need not wait for it again
            if error.status == EXIT_FAILED:
                raise
            from onesec.cli.main import complain

            complain(str(error), error.hint)
            sys.stderr.flush()
            return error.status


def _store(found: Found) -> None:
    """The container runs; its image gets its name here. If it does not, the next start fetches it again."""
    from onesec.cli.main import describe

    try:
        found.store()
    except OnesecError as error:
        _note(f"image {found.image.name}: not stored: {error}")
    except OSError as error:
        _note(f"image {found.image.name}: not stored: {describe(error)}")


class _Story:
    """The timeline of a call that nobody asked one for."""

    def mark(self, name: str) -> None:
        """A phase ended."""

    def attached(self, served: ServedImage) -> None:
        """The image is served."""

    def tell(self, served: ServedImage, prefill: Prefill | None, command: Sequence[str], status: int) -> None:
        """The container has ended."""


class _ToldStory(_Story):
    """One that is drawn. Its modules are imported at the end: they are not part of a start."""

    def __init__(self, place: str) -> None:
        from lazyfs.timeline import Timeline

        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._fd = -1 if place == "-" else os.open(place, flags, 0o666)  # now: what it says is known before a start
        self._timeline = Timeline()
        self.mark = self._timeline.mark  # type: ignore[method-assign]
        self.mark("interpreter")

    def attached(self, served: ServedImage) -> None:
        served.attachment.trace()
        self.mark("server")

    def tell(self, served: ServedImage, prefill: Prefill | None, command: Sequence[str], status: int) -> None:
        from onesec import timeline_page

        image = served.image
        record = self._timeline.record(
            served.attachment,
            image=image.name,
            digest=str(image.digest),
            command=list(command),
            status=status,
            erofs=image.erofs,
            boot=None if prefill is None else prefill.pack,
            report=None if prefill is None else prefill.report(),
        )
        if self._fd < 0:
            sys.stderr.write(timeline_page.table(record))
            return
        with open(self._fd, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(timeline_page.page(record))


def _tell(story: _Story, served: ServedImage, prefill: Prefill | None, command: Sequence[str], status: int) -> None:
    """Whatever becomes of it, the container has ended with its own status."""
    from onesec.cli.main import complain, describe

    try:
        story.tell(served, prefill, command, status)
    except OnesecError as error:
        complain(f"--timeline: {error}", error.hint)
    except OSError as error:
        complain(f"--timeline: {describe(error)}")


def _story(place: str | None) -> _Story:
    return _Story() if place is None else _ToldStory(place)


def settings(config: Config) -> Settings:
    """How this host runs containers."""
    run = config.run
    return Settings(
        root=str(config.root),
        run_dir=str(config.run_dir),
        runtime=run.runtime,
        scratch=run.scratch,
        seccomp=None if run.seccomp is None else str(run.seccomp),
        cdi=run.cdi,
    )


def _note(text: str) -> None:
    from onesec.cli.main import complain

    complain(text)


def parse_options(arguments: argparse.Namespace, environment: dict[str, str], *, terminal: bool) -> RunOptions:
    """The words of the call, checked. Raises UsageError."""
    return RunOptions(
        command=tuple(arguments.command),
        environment=tuple(_variables(arguments.env, environment)),
        volumes=tuple(parse_volume(text) for text in arguments.volume),
        working_directory=arguments.workdir,
        user=arguments.user,
        network=cast(Network, arguments.net),
        terminal=arguments.tty or terminal,
        gpus=tuple(arguments.gpus),
        devices=tuple(arguments.device),
    )


def _variables(texts: list[str], environment: dict[str, str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, given, value = text.partition("=")
        if not name:
            raise UsageError(f"--env: got {text}, want NAME=VALUE")
        if given:
            pairs.append((name, value))
        elif name in environment:
            pairs.append((name, environment[name]))
    return pairs


def parse_volume(text: str) -> Volume:
    """SRC:DST with an optional :ro or :rw. A source is a path: with a slash or a leading dot."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise UsageError(f"--volume: got {text}, want SRC:DST[:ro]")
    source, destination, *flags = parts
    if flags not in ([], ["ro"], ["rw"]):
        raise UsageError(f"--volume: got {text}, want SRC:DST[:ro]")
    if "/" not in source and not source.startswith("."):
        raise UsageError(f"--volume: got {source}, want a path", hint=f"./{source} is one; named volumes do not exist")
    if not destination.startswith("/"):
        raise UsageError(f"--volume: got {destination}, want an absolute path in the container")
    return Volume(os.path.abspath(source), destination, flags == ["ro"])
