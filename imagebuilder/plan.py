"""An image as a graph of steps with cache keys. Pure: what has to be read from the host comes in as `Inputs`.

A key is BLAKE3 of what a step is, what it reads, and the keys of the steps it runs on top of. Call sites, host paths,
mirrors' credentials and the values of secrets are in no key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cext import blake3
from imagebuilder import debian
from imagebuilder.image import CallSite, Configure, CopyLocal, DebianBase, Image, OciBase, PipInstall, Run
from imagebuilder.pip_settings import PipSettings

_KEY_CONTEXT = "onesec 2026 build step v1"
_RUN_RECIPE = 2  # counts changes of how what a command left becomes a layer: steps of another are not taken
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Context:
    """Where a command of the image would run: what `env`, `workdir` and `user` have said so far, over the base's."""

    env: tuple[tuple[str, str], ...] = ()
    workdir: str | None = None
    user: str | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None

    def then(self, change: Configure) -> Context:
        return Context(
            tuple(sorted({**dict(self.env), **dict(change.env)}.items())),
            self.workdir if change.workdir is None else change.workdir,
            self.user if change.user is None else change.user,
            self.entrypoint if change.entrypoint is None else change.entrypoint,
            self.cmd if change.cmd is None else change.cmd,
        )


@dataclass(frozen=True, slots=True)
class Inputs:
    """What an edge function read for a plan. trees: digest of what each copy takes. texts: of requirements files, by
    path. sources: digest of each OCI source. settings: of pip on this host. architecture: as OCI names it.
    """

    trees: Mapping[CopyLocal, bytes] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    settings: PipSettings = field(default_factory=PipSettings)
    architecture: str = "amd64"


@dataclass(frozen=True, slots=True)
class Step:
    """key: 64 hex digits. needs: numbers of the steps it runs on top of, all lower than its own."""

    number: int
    key: str
    action: OciBase | DebianBase | PipInstall | CopyLocal | Run
    context: Context
    needs: tuple[int, ...]
    where: CallSite

    @property
    def title(self) -> str:
        match self.action:
            case OciBase(source=source):
                return f"from {source}"
            case DebianBase(python_version=version, packages=names):
                release = debian.release_for(version).name
                return " ".join((f"debian {release} with python {version}", *names))
            case PipInstall(requirements=words, requirements_file=path):
                return " ".join(("pip install", *words, *(("-r", path) if path else ())))
            case CopyLocal(source=source, target=target):
                return f"copy {source} to {target}"
            case Run(commands=commands):
                return "run " + "; ".join(" ".join(command.split()) for command in commands)


@dataclass(frozen=True, slots=True)
class Plan:
    """steps: in the order of their layers, bottom first. context: of the finished image."""

    steps: tuple[Step, ...]
    context: Context


def settings_for(action: PipInstall, host: PipSettings) -> PipSettings:
    """pip's settings on the host, with those that the image names in their place."""
    return PipSettings(
        index_url=action.index_url or host.index_url,
        extra_index_url=action.extra_index_url or host.extra_index_url,
        find_links=action.find_links or host.find_links,
        trusted_host=host.trusted_host,
        constraint=host.constraint,
        cert=host.cert,
        client_cert=host.client_cert,
        proxy=host.proxy,
        no_index=host.no_index and action.index_url is None,
        pre=action.pre or host.pre,
    )


def plan(image: Image, inputs: Inputs) -> Plan:
    """Raises UsageError for what no machine could build."""
    context = Context()
    steps: list[Step] = []
    for action, where in _actions(image):
        if isinstance(action, Configure):
            context = context.then(action)
            continue
        needs = tuple(_needs(action, image, steps))
        key = _key(_definition(action, context, image, inputs), _keys_below(action, image, needs, steps))
        steps.append(Step(len(steps), key, action, context, needs, where))
    return Plan(tuple(steps), context)


def _actions(
    image: Image,
) -> Iterator[tuple[OciBase | DebianBase | PipInstall | CopyLocal | Run | Configure, CallSite]]:
    yield image.base, image.where
    for operation in image.operations:
        yield operation.action, operation.where


def _needs(action: object, image: Image, steps: Sequence[Step]) -> Iterator[int]:
    """A command sees everything below it. Packages need the Python they are for, which a command may have installed
    unless the base brings it. Copies need nothing.
    """
    for step in steps:
        brings_python = step.number == 0 or (isinstance(step.action, Run) and isinstance(image.base, OciBase))
        if isinstance(action, Run) or (isinstance(action, PipInstall) and brings_python):
            yield step.number


def _keys_below(action: object, image: Image, needs: Sequence[int], steps: Sequence[Step]) -> list[str]:
    if isinstance(action, PipInstall) and isinstance(image.base, DebianBase):
        return []  # the release says it all, and stands in the definition: more packages change no wheel
    return [steps[number].key for number in needs]


def _definition(
    action: OciBase | DebianBase | PipInstall | CopyLocal | Run, context: Context, image: Image, inputs: Inputs
) -> dict[str, object]:
    match action:
        case OciBase(source=source):
            found: object = inputs.sources.get(source, source)
            return {"step": "oci", "source": found, "architecture": inputs.architecture}
        case DebianBase(python_version=version, packages=names):
            return {
                "step": "debian",
                "recipe": debian.RECIPE,
                "release": debian.release_for(version).name,
                "packages": debian.packages(names),
                "architecture": inputs.architecture,
            }
        case PipInstall(requirements=words, requirements_file=path):
            settings = settings_for(action, inputs.settings).without_credentials()
            return {
                "step": "pip",
                "requirements": words,
                "file": None if path is None else inputs.texts[path],
                "index": settings.index_url,
                "extra": settings.extra_index_url,
                "links": settings.find_links,
                "constraint": [inputs.texts.get(name, name) for name in settings.constraint],
                "no_index": settings.no_index,
                "pre": settings.pre,
                "python": image.base.python_version if isinstance(image.base, DebianBase) else None,
                "architecture": inputs.architecture,
            }
        case CopyLocal(target=target):
            return {"step": "copy", "tree": inputs.trees[action].hex(), "target": target}
        case Run(commands=commands, secrets=secrets):
            return {
                "step": "run",
                "recipe": _RUN_RECIPE,
                "commands": commands,
                "secrets": secrets,
                "env": context.env,
                "workdir": context.workdir,
                "user": context.user,
            }


def _key(definition: Mapping[str, object], below: Sequence[str]) -> str:
    text = json.dumps([definition, list(below)], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return blake3(text.encode(), context=_KEY_CONTEXT).hex()


def image_config(base: Mapping[str, object], context: Context, architecture: str) -> dict[str, object]:
    """The OCI config of the finished image: the base's, with what the image says over it. Pure, and without a clock."""
    old = base.get("config")
    inner = dict(old) if isinstance(old, dict) else {}
    env = dict(word.partition("=")[::2] for word in inner.get("Env") or ())
    env.setdefault("PATH", DEFAULT_PATH)
    env.update(context.env)
    inner["Env"] = [f"{name}={value}" for name, value in env.items()]
    for key, value in (("WorkingDir", context.workdir), ("User", context.user)):
        if value is not None:
            inner[key] = value
    for key, words in (("Entrypoint", context.entrypoint), ("Cmd", context.cmd)):
        if words:
            inner[key] = list(words)
        elif words is not None:
            inner.pop(key, None)
    return {
        "architecture": base.get("architecture", architecture),
        "os": base.get("os", "linux"),
        **{key: base[key] for key in ("variant", "os.version", "os.features") if key in base},
        "config": inner,
        "rootfs": {"type": "layers", "diff_ids": []},
    }
