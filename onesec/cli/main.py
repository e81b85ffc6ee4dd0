"""The command line: finds the command, loads its one file, runs it, turns what it raises into a line and a status.

A command is ``onesec/cli/<name>.py`` (``import`` is ``import_.py``) with

    def add_arguments(parser: argparse.ArgumentParser) -> None
    def run(arguments: argparse.Namespace, config: Config) -> int

and optionally ``EXIT_FAILED: int``, the status for whatever goes wrong on our side (``run`` has 125, as podman). Only
the file of the command that was called is imported: ``run`` and ``mount`` answer in milliseconds because of it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn, Protocol, cast

from cext.errors import OnesecError, UsageError
from onesec.config import Config, load

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

COMMANDS: dict[str, str] = {
    "build": "build an image from a Python file",
    "import": "convert an image of another tool into a local one",
    "push": "send an image to a registry",
    "pull": "bring an image from a registry",
    "images": "list the local images",
    "inspect": "show an image's manifest and configuration",
    "rm": "remove a name from the local layout",
    "gc": "delete what no name and no mount needs",
    "verify": "check an image's digests, tables and metadata",
    "mount": "mount an image's file tree, read-only",
    "umount": "undo a mount",
    "run": "run a command in a container on an image",
    "profile": "learn which pages a start touches, for a boot pack",
    "fsck": "check the local store and layout",
    "bench": "measure this against its peers, write JSON and a report",
}


class Command(Protocol):
    """What the file of a command gives."""

    @property
    def add_arguments(self) -> Callable[[argparse.ArgumentParser], None]: ...

    @property
    def run(self) -> Callable[[argparse.Namespace, Config], int]: ...


class _Parser(argparse.ArgumentParser):
    """Errors are ours to print: one line and a hint."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"{self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the status to exit with."""
    words = list(sys.argv[1:] if argv is None else argv)
    failed, usage = EXIT_FAILED, EXIT_USAGE
    try:
        before, name, after = split(words)
        if name is None:
            _global_parser().parse_args(before)  # --help and --version leave here
            raise UsageError("no command given", hint="onesec --help")
        command = _command(name)
        own: int | None = getattr(command, "EXIT_FAILED", None)
        if own is not None:
            failed = usage = own
        status = _run(command, name, [*before, *after])
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter must not try to flush into it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
        return EXIT_BROKEN_PIPE
    except UsageError as error:
        complain(str(error), error.hint)
        return usage
    except OnesecError as error:
        complain(str(error), error.hint)
        return failed
    except OSError as error:
        complain(describe(error))
        return failed
    except MemoryError:
        complain("out of memory")
        return failed


def entry() -> NoReturn:
    """What the `onesec` program is: the command, and no taking down of the interpreter, which costs as long as crun."""
    _open_standard_streams()
    status = main()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _open_standard_streams() -> None:
    """A descriptor that the caller closed becomes /dev/null, or the next file of ours would be the container's."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)  # the lowest that is free
            assert fd == number
            os.set_inheritable(fd, True)
    sys.stdout = sys.stdout or os.fdopen(1, "w")  # None if it was closed
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def complain(message: str, hint: str | None = None) -> None:
    """One line on stderr, and the hint's. Control characters from outside never reach the terminal."""
    lines = [f"onesec: {printable(message)}"]
    if hint is not None:
        lines.append(f"hint: {printable(hint)}")
    with suppress(OSError, ValueError):  # nobody listens; the status still tells
        print("\n".join(lines), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def describe(error: OSError) -> str:
    """``path: no such file or directory``, whatever the path's type."""
    words = os.strerror(error.errno).lower() if error.errno else str(error)
    if isinstance(error.strerror, str) and error.errno and error.strerror != os.strerror(error.errno):
        words = f"{error.strerror}: {words}"  # cext puts what it did into the message
    if error.filename is None:
        return words
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    return f"{name}: {words}"


def split(words: Sequence[str]) -> tuple[list[str], str | None, list[str]]:
    """Global options before the command, the command, the rest."""
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] != "--":
        at += 2 if words[at] in ("--root", "--run-dir") else 1
    before = list(words[:at])
    if at < len(words) and words[at] == "--":
        at += 1
    if at >= len(words):
        return before, None, []
    return before, words[at], list(words[at + 1 :])


def _command(name: str) -> Command:
    if name not in COMMANDS:
        raise UsageError(f"{name}: no such command", hint="onesec --help")
    module = "import_" if name == "import" else name
    return cast(Command, import_module(f"onesec.cli.{module}"))


def _run(command: Command, name: str, words: list[str]) -> int:
    parser = _Parser(prog=f"onesec {name}", description=COMMANDS[name], allow_abbrev=False)
    _add_globals(parser)
    command.add_arguments(parser)
    arguments = parser.parse_args(words)
    config = load(os.environ, root=arguments.root, run_dir=arguments.run_dir, json=arguments.json)
    return command.run(arguments, config)


def _add_globals(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", metavar="DIR", help="images and caches (ONESEC_ROOT; default /var/lib/onesec)")
    parser.add_argument("--run-dir", metavar="DIR", help="mounts and sockets (ONESEC_RUN; default /run/onesec)")
    parser.add_argument("--json", action="store_true", help="machine-readable output where a table is printed")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from onesec import __version__

        print(f"onesec {__version__}")
        parser.exit()


def _global_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
    parser = _Parser(
        prog="onesec",
        usage="onesec [--root DIR] [--run-dir DIR] [--json] COMMAND …",
        description="Container images from Python that start lazily.",
        epilog=f"commands:\n{listing}\n\n`onesec COMMAND --help` tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_globals(parser)
    return parser
