"""``python -m tests.support.plain_run WORDS``: runs a container on a plain image in a process of its own.

WORDS is JSON: {"image": {"metadata", "objects"}, "settings": {…}, "options": {…}, "config": {…}}. Exits as ``onesec
run`` would and says errors as it would.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import ExitStack

from cext.errors import OnesecError
from lazyfs import container
from lazyfs.errors import ContainerError
from lazyfs.runtime_config import image_config
from onesec.cli import run as command
from onesec.cli.main import complain
from tests.support.mounts import lowers_of


def main() -> int:
    words = json.loads(sys.argv[1])
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = parser.parse_args([*words["options"], "plain", *words["command"]])
    try:
        options = command.parse_options(arguments, dict(os.environ), terminal=False)
        file = os.open(words["image"]["metadata"], os.O_RDONLY | os.O_CLOEXEC)
        objects = os.open(words["image"]["objects"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        settings = container.Settings(**words["settings"])
        with ExitStack() as stack:
            lowers = lowers_of(stack, file, objects, name="plain")
            return container.run(lowers, image_config(words["config"]), options, settings, name="plain")
    except OnesecError as error:
        complain(str(error), error.hint)
        return error.status if isinstance(error, ContainerError) else command.EXIT_FAILED


if __name__ == "__main__":
    raise SystemExit(main())
