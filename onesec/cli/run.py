"""``onesec run``: a container on the lazy tree, as podman would run it."""

from __future__ import annotations

import argparse
import os
import sys
from typing import cast

from cext.errors import UsageError
from lazyfs.container import Settings
from lazyfs.errors import ContainerError
from lazyfs.runtime_config import Network, RunOptions, Volume, image_config
from onesec.config import Config

EXIT_FAILED = 125


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-e", "--env", metavar="K=V", action="append", default=[], help="K alone takes the host's")
    parser.add_argument("-v", "--volume", metavar="SRC:DST[:ro]", action="append", default=[], help="bind mount")
    parser.add_argument("-w", "--workdir", metavar="DIR", help="working directory")
    parser.add_argument("-u", "--user", metavar="USER[:GROUP]", help="names of the image, or numbers")
    parser.add_argument("--net", choices=("host", "none"), default="host", help="default: host")
    parser.add_argument("-t", "--tty", action="store_true", help="a terminal; by itself when stdin and stdout are one")
    parser.add_argument("-i", "--interactive", action="store_true", help="stdin is always passed; for podman's users")
    parser.add_argument("reference", metavar="REF", help="image")
    command = parser.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER, help="default: the image's")
    command.required = False  # argparse says it is, and then names it beside a missing REF


def run(arguments: argparse.Namespace, config: Config) -> int:
    options = parse_options(arguments, dict(os.environ), terminal=os.isatty(0) and os.isatty(1))
    from lazyfs import container
    from lazyfs.probe import probe
    from onesec.images import prefilled, served_image

    probe().require()
    with served_image(arguments.reference, config) as served, prefilled(served):
        image = served.image
        try:
            return container.run(
                served.lowers,
                image_config(image.config),
                options,
                settings(config),
                name=image.name,
                note=_note,
            )
        except ContainerError as error:
            if error.status == EXIT_FAILED:
                raise
            from onesec.cli.main import complain

            complain(str(error), error.hint)
            sys.stderr.flush()
            return error.status


def settings(config: Config) -> Settings:
    """How this host runs containers."""
    run = config.run
    return Settings(
        root=str(config.root),
        run_dir=str(config.run_dir),
        runtime=run.runtime,
        scratch=run.scratch,
        seccomp=None if run.seccomp is None else str(run.seccomp),
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
