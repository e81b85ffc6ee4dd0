"""`pip install .` works for users: with old and new setuptools, and with compilers that have new warnings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def setup(*words: str, warnings: str = "default", **environment: str) -> str:
    plain = {name: value for name, value in os.environ.items() if name != "ONESEC_WERROR"}
    done = subprocess.run(
        [sys.executable, "-W", warnings, "setup.py", *words],
        cwd=ROOT,
        env={**plain, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_license_is_an_spdx_word_that_every_setuptools_takes() -> None:
    text = setup("--license")
    assert "Apache-2.0" in text.splitlines()
    assert "is deprecated" not in "\n".join(line for line in text.splitlines() if "license" in line.lower())
    assert re.search(r'^dynamic = \[.*"license".*\]', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


@pytest.mark.parametrize("strict", [False, True])
def test_warnings_of_the_compiler_are_errors_for_us_and_not_for_users(strict: bool, tmp_path: Path) -> None:
    code = (
        "import setuptools, sys; seen = {}; setuptools.setup = lambda **words: seen.update(words);"
        "sys.argv = ['setup.py']; exec(compile(open('setup.py').read(), 'setup.py', 'exec'));"
        "print(*seen['ext_modules'][0].extra_compile_args)"
    )
    plain = {name: value for name, value in os.environ.items() if name != "ONESEC_WERROR"}
    environment = {**plain, **({"ONESEC_WERROR": "1"} if strict else {})}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert ("-Werror" in done.stdout.split()) is strict
    assert "-Wall" in done.stdout.split()


def test_make_and_ci_ask_for_it() -> None:
    assert "export ONESEC_WERROR := 1" in (ROOT / "Makefile").read_text()
    assert "ONESEC_WERROR=1" in (ROOT / ".ci/sanitize").read_text()
