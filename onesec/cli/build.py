"""``onesec build``: an image file becomes an image in the local layout."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import Any

from cext.errors import UsageError
from imagebuilder import local, pip_settings, progress
from imagebuilder.image import SECRET_NAME
from imagebuilder.load import default_tag, load_image, split
from imagebuilder.plan import Inputs, Plan, plan
from onesec.config import Config
from registry.reference import Reference

_TITLE_MAX = 90


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE[:NAME]", help="a Python file and the name of the Image in it")
    parser.add_argument("-t", "--tag", metavar="REF", help="the name to give it; default: from the file's name")
    parser.add_argument("--plan", action="store_true", help="print the steps and what is cached; run nothing")
    parser.add_argument("--no-cache", action="store_true", help="make every step again, and solve requirements anew")
    parser.add_argument("--no-boot-pack", action="store_true", help="guess none; `onesec profile` can make one later")
    parser.add_argument("--push", action="store_true", help="send it to the registry that the tag names")
    parser.add_argument("--secret", metavar="id=I,src=P", action="append", default=[], help="a file for run(secrets=…)")


def run(arguments: argparse.Namespace, config: Config) -> int:
    path, name = split(arguments.file)
    secrets = dict(parse_secret(text) for text in arguments.secret)
    reference = Reference.parse(arguments.tag or default_tag(path))
    if arguments.push and reference.host is None:
        raise UsageError(f"--push: {reference} names no registry", hint="-t HOST/NAME says where to")
    image = load_image(path, name)
    inputs = local.read_inputs(image, pip_settings.load(os.environ))
    steps = plan(image, inputs)
    if arguments.plan:
        return _show(steps, config)
    use_cache, boot_pack = not arguments.no_cache, not arguments.no_boot_pack
    record, lines = _build(steps, inputs, reference, secrets, config, use_cache=use_cache, boot_pack=boot_pack)
    if arguments.push:
        from onesec.cli import push

        pushed = push.push(reference, reference, config)
        record["pushed"] = push.record(pushed)
        lines.append(f"{reference}: {push.summary(pushed)}")
    print(json.dumps(record) if config.json else "\n".join([*lines, record["digest"]]))
    return 0


def parse_secret(text: str) -> tuple[str, str]:
    """id=I,src=P. The path may have commas."""
    first, comma, second = text.partition(",")
    if not first.startswith("id=") or not comma or not second.startswith("src="):
        raise UsageError(f"--secret: got {text!r}, want id=NAME,src=FILE")
    name = first[3:]
    if not SECRET_NAME.fullmatch(name):
        raise UsageError(f"--secret: id: got {name!r}, want a name of letters, digits, _ . -")
    path = os.path.abspath(second[4:])
    if not os.path.isfile(path):
        raise UsageError(f"--secret: {path}: no such file")
    return name, path


def _show(steps: Plan, config: Config) -> int:
    """Reads the cache and nothing else: not even the root is made."""
    from imagebuilder.steps import cached
    from registry.layout import Layout

    known = cached(Layout(os.path.abspath(config.root)), steps)
    if config.json:
        rows = [
            {
                "step": step.title,
                "key": step.key,
                "cached": step.number in known,
                "needs": list(step.needs),
                "where": str(step.where),
            }
            for step in steps.steps
        ]
        print(json.dumps({"steps": rows}))
        return 0
    for step in steps.steps:
        state = "cached" if step.number in known else "build"
        print(f"{step.number + 1:>3}  {state:<6}  {step.key[:12]}  {_shorten(step.title)}")
    return 0


def _shorten(text: str) -> str:
    return text if len(text) <= _TITLE_MAX else text[: _TITLE_MAX - 1] + "…"


def _build(
    steps: Plan,
    inputs: Inputs,
    reference: Reference,
    secrets: dict[str, str],
    config: Config,
    *,
    use_cache: bool,
    boot_pack: bool,
) -> tuple[dict[str, Any], list[str]]:
    """Builds and tags. Returns what to say: as a record, and in lines."""
    import trio

    from imagebuilder.layer import Workshop
    from imagebuilder.run import World, build
    from onesec.wiring import open_tree, sandbox
    from registry.layout import Layout

    if reference.digest is not None:
        raise UsageError(f"tag {reference}: want a name without a digest")
    layout = Layout.open(config.root)
    with progress.for_user() as shown, layout.writing(), Workshop(layout) as workshop:
        world = World(
            workshop,
            shown,
            open_tree(layout),
            dict(os.environ),
            sandbox(config, layout, shown.note),
            secrets,
            use_cache,
            boot_pack,
        )
        try:
            manifest, domain = trio.run(build, steps, inputs, world)
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        layout.tag(reference, manifest, domain=domain)
    record = {"name": reference.name, "digest": str(manifest.digest), "domain": domain}
    return record, [f"{reference.name}: {len(steps.steps)} steps"]


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one to tell the user: a Ctrl-C before all, else the first that failed."""
    found: Sequence[BaseException] = group.exceptions
    flat = [first_error(one) if isinstance(one, BaseExceptionGroup) else one for one in found]
    return next((one for one in flat if isinstance(one, KeyboardInterrupt)), flat[0])
