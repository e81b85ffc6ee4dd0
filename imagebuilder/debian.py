"""A minimal Debian as a tar stream, made by mmdebstrap on any Debian host.

The mirrors, proxies and credentials are those of the host's apt; the suite is the image's. Neither stays behind: the
image's own sources name Debian's public mirror. What differs from run to run (logs, caches, machine-id, times) is left
out, so that the same archive state gives the same bytes.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from cext.errors import UnsupportedError, UsageError
from imagebuilder.errors import DebianError
from imagebuilder.pip_settings import hide_credentials

RECIPE = "3"  # counts changes of what follows that change an image's bytes; part of the cache key
_NO_SOURCES = "# The mirrors that this image was made from are its maker's and not kept. Name yours here to use apt.\n"
_KEYRINGS = "/usr/share/keyrings"
_NEEDED = ("ca-certificates", "python3")
_HOST_APT = re.compile(
    r"Acquire::(https?::.+|Check-Valid-Until|Check-Date|Retries|ForceIPv[46]|AllowInsecureRepositories)"
)
_HOST_FILE = re.compile(r'(Acquire::https?::(?:.+::)?(?:CAInfo|SslCert|SslKey|IssuerCert|CrlFile)) "(/.*)";', re.I)
_PATIENT = 'Acquire::Retries "5";'  # before the host's own word: one hiccup of a mirror in hundreds of files is likely
_EXCLUDED = (
    "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/doc-base/*",
    "/usr/share/lintian/*", "/usr/share/linda/*", "/usr/share/bug/*",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Release:
    """python: of Debian's package python3. epoch: seconds; mmdebstrap makes no file younger. glibc: (major, minor)."""

    name: str
    python: str
    epoch: int
    glibc: tuple[int, int]


RELEASES = (
    Release("bullseye", "3.9", 1628899200, (2, 31)),
    Release("bookworm", "3.11", 1686355200, (2, 36)),
    Release("trixie", "3.13", 1754697600, (2, 41)),
)


@dataclass(frozen=True, slots=True)
class Mirrors:
    """Of the host's apt, in its order. Never written into an image or a key."""

    main: tuple[str, ...]
    security: tuple[str, ...]


def release_for(python_version: str) -> Release:
    for release in RELEASES:
        if release.python == python_version:
            return release
    known = ", ".join(f"{release.python} ({release.name})" for release in RELEASES)
    raise UsageError(f"debian_slim: python_version: got {python_version}, want one that a Debian release has: {known}")


# ---------------------------------------------------------------------- the host's apt


def host_mirrors(root: str = "/") -> Mirrors:
    """From sources.list and sources.list.d in both formats; Debian's public ones on hosts that have none."""
    etc = os.path.join(root, "etc/apt")
    lines = [_read(path) for path in (f"{etc}/sources.list", *sorted(glob.glob(f"{etc}/sources.list.d/*.list")))]
    stanzas = [_read(path) for path in sorted(glob.glob(f"{etc}/sources.list.d/*.sources"))]
    entries = [entry for text in lines for entry in parse_one_line(text)]
    entries += [entry for text in stanzas for entry in parse_deb822(text)]
    return mirrors(entries)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def parse_one_line(text: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(uri, suite, components) of each `deb` line."""
    for line in text.splitlines():
        words = re.sub(r"\[[^]]*\]", " ", line.partition("#")[0]).split()
        if len(words) >= 3 and words[0] == "deb":
            yield words[1], words[2], tuple(words[3:])


def parse_deb822(text: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(uri, suite, components) of each enabled stanza for binary packages."""
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        last = ""
        for line in stanza.splitlines():
            if line[:1] in " \t" and last:
                fields[last] += " " + line.strip()
            elif ":" in line:
                name, _, value = line.partition(":")
                last = name.strip().lower()
                fields[last] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield uri, suite, tuple(fields.get("components", "").split())


def mirrors(entries: Iterable[tuple[str, str, tuple[str, ...]]]) -> Mirrors:
    """Of all sources, those that are Debian's own. Pure."""
    names = {release.name for release in RELEASES} | {"forky", "sid", "stable", "oldstable", "testing", "unstable"}
    main: dict[str, None] = {}
    security: dict[str, None] = {}
    for uri, suite, components in entries:
        head, _, tail = suite.partition("-")
        if head.removesuffix("/updates") not in names or "main" not in components:
            continue
        if tail == "security" or head.endswith("/updates"):
            security[uri] = None
        elif not tail:
            main[uri] = None
    if not main:
        raise UnsupportedError(
            "debian_slim: apt on this machine names no Debian mirror",
            hint="add one to /etc/apt/sources.list.d: what to install comes from there",
        )
    return Mirrors(tuple(main), tuple(security))


def host_apt_options() -> tuple[str, ...]:
    """How the host's apt reaches its mirrors, as lines of apt.conf. May hold credentials of proxies."""
    try:
        done = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ()
    found = [line for line in done.stdout.splitlines() if _HOST_APT.match(line) and not line.endswith(' "";')]
    found += [
        f'Dir::Etc::{key} "{path}";'
        for key, path in (("netrc", "/etc/apt/auth.conf"), ("netrcparts", "/etc/apt/auth.conf.d"))
        if os.path.exists(path)
    ]
    return tuple(found)


# ---------------------------------------------------------------------- mmdebstrap


def sources(release: Release, where: Mirrors, keyring: str) -> str:
    """sources.list for the making of the image. Pure."""
    signed = f" [signed-by={keyring}]"
    rows = [(uri, suite) for uri in where.main for suite in (release.name, f"{release.name}-updates")]
    rows += [(uri, f"{release.name}-security") for uri in where.security]
    return "".join(f"deb{signed} {uri} {suite} main\n" for uri, suite in rows)


def packages(extra: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted({*_NEEDED, *extra}))


def command(release: Release, extra: Sequence[str], directory: str) -> list[str]:
    """mmdebstrap's call; writes the tar to stdout. directory: with the files `tar_stream` writes. Pure."""
    place = shlex.quote(directory)
    clean = (
        'cd "$1" && rm -rf var/log/* var/cache/* var/lib/apt/lists/* var/lib/dpkg/*-old var/backups/* tmp/* run/* '
        "etc/apt/apt.conf.d/99mmdebstrap etc/dpkg/dpkg.cfg.d/99mmdebstrap etc/hostname etc/resolv.conf "
        "var/lib/systemd/catalog etc/passwd- etc/group- etc/shadow- etc/gshadow- "
        "&& mkdir -p var/cache/apt/archives/partial var/lib/apt/lists/partial var/log/apt "
        "&& : > etc/machine-id && rm -f var/lib/dbus/machine-id"
    )
    # With SOURCE_DATE_EPOCH Debian's own hook makes bytecode that hashes its source at each import.
    bytecode = (
        'env -u SOURCE_DATE_EPOCH chroot "$1" python3 -m compileall -q -f --invalidation-mode unchecked-hash '
        f"/usr/lib/python3 /usr/lib/python{release.python}"
    )
    exclude = [f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED]
    return [
        "mmdebstrap", "--variant=apt", "--format=tar", "--skip=output/dev", "--quiet",
        f"--include={','.join(packages(extra))}",
        f"--aptopt={directory}/apt.conf",
        *exclude,
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        f"--customize-hook={bytecode}",
        f'--customize-hook=cp {place}/sources.list "$1/etc/apt/sources.list" && chmod 644 "$1/etc/apt/sources.list"',
        '--customize-hook=rm -f "$1"/etc/apt/sources.list.d/*',
        f"--customize-hook={clean}",
        release.name, "-", f"{directory}/mirrors.list",
    ]  # fmt: skip


def find_keyring(release: Release) -> str:
    path = f"{_KEYRINGS}/debian-archive-keyring.gpg"
    if os.path.exists(path):
        return path
    raise UnsupportedError(
        f"debian_slim: {path}: no keys to check {release.name} with", hint="apt install debian-archive-keyring"
    )


def step_files(release: Release, place: str) -> dict[str, bytes]:
    """For apt in a command that runs on the image: the host's mirrors and keys, and how it reaches them. place: where
    the files will be; the certificates of the host are there as ca.pem.

    What a command adds in /etc/apt/sources.list.d counts as well; the image's sources.list, which is empty, does not.
    """
    options, files = move_files(host_apt_options(), place)
    netrc = [_read(path) for path in ("/etc/apt/auth.conf", *sorted(glob.glob("/etc/apt/auth.conf.d/*.conf")))]
    if any(netrc):
        files["auth.conf"] = "\n".join(netrc).encode()
        options.append(f'Dir::Etc::netrc "{place}/auth.conf";')
    keyring = "keyring.gpg"
    with open(find_keyring(release), "rb") as file:
        files[keyring] = file.read()
    files["sources.list"] = sources(release, host_mirrors(), f"{place}/{keyring}").encode()
    lines = [
        f'Acquire::https::CAInfo "{place}/ca.pem";',  # first: the host's own word comes after it
        _PATIENT,
        *options,
        f'Dir::Etc::sourcelist "{place}/sources.list";',
        'Acquire::Languages "none";',
    ]
    files["apt.conf"] = ("\n".join(lines) + "\n").encode()
    return files


def move_files(options: Iterable[str], place: str) -> tuple[list[str], dict[str, bytes]]:
    """Options of apt that name files of the host, with copies named instead."""
    moved: list[str] = []
    files: dict[str, bytes] = {}
    for line in options:
        if line.startswith("Dir::Etc::netrc"):
            continue
        if named := _HOST_FILE.fullmatch(line):
            key, path = named.groups()
            name = f"host-{len(files)}.pem"
            with open(path, "rb") as file:
                files[name] = file.read()
            line = f'{key} "{place}/{name}";'
        moved.append(line)
    return moved, files


@contextmanager
def tar_stream(release: Release, extra: Sequence[str], environment: Mapping[str, str]) -> Iterator[IO[bytes]]:
    """The image's files as a tar. Reading may block for minutes. Raises DebianError once the block has read it all.

    Leaving the block early ends mmdebstrap, which cleans up after itself.
    """
    if shutil.which("mmdebstrap", path=environment.get("PATH")) is None:
        raise UnsupportedError("debian_slim needs mmdebstrap, which is not installed", hint="apt install mmdebstrap")
    keyring = find_keyring(release)
    with tempfile.TemporaryDirectory(prefix="onesec-debian-") as directory:
        files = {
            "apt.conf": "\n".join(
                (_PATIENT, *host_apt_options(), 'Acquire::Languages "none";', 'APT::Install-Recommends "0";')
            ),
            "mirrors.list": sources(release, host_mirrors(), keyring),
            "sources.list": _NO_SOURCES,
        }
        for name, text in files.items():
            with open(f"{directory}/{name}", "w", encoding="utf-8") as file:
                file.write(text + "\n")
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                command(release, extra, directory),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**environment, "SOURCE_DATE_EPOCH": str(release.epoch), "LC_ALL": "C", "TZ": "UTC"},
                umask=0o022,
                start_new_session=True,  # a Ctrl-C reaches it through us, once
            )
            assert process.stdout is not None
            try:
                yield process.stdout
                process.stdout.close()
                status = process.wait()
            except BaseException:
                # All of it: mmdebstrap by itself waits for the apt or dpkg that it started.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                process.stdout.close()
                process.wait()
                raise
            if status:
                log.seek(0)
                raise DebianError(_explain(release, status, log.read().decode(errors="replace")))


def _explain(release: Release, status: int, words: str) -> str:
    found = [line.strip() for line in words.splitlines() if line.startswith(("E:", "W:", "Err"))]
    reason = "; ".join(found[:4]) or words.strip()[-300:] or "no word"
    return f"debian_slim: {release.name}: mmdebstrap failed with status {status}: {hide_credentials(reason)}"
