from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cext.errors import UsageError
from imagebuilder.image import CopyLocal, Image
from imagebuilder.pip_settings import PipSettings
from imagebuilder.plan import Context, Inputs, Plan, image_config, plan

REPOSITORY = Path(__file__).parents[3]
COPY = CopyLocal("/host/app", "/app")


def planned(image: Image, *, tree: bytes = b"t", settings: PipSettings | None = None) -> Plan:
    return plan(image, Inputs(trees={COPY: tree}, settings=settings or PipSettings()))


def sample() -> Image:
    return (
        Image.debian_slim()
        .env(B="2", A="1")
        .pip_install("numpy")
        .copy_local("/host/app", "/app")
        .run("true", secrets="token")
        .cmd("app")
    )


def keys(image: Image, **more: object) -> list[str]:
    return [step.key for step in planned(image, **more).steps]  # type: ignore[arg-type]


def test_a_command_needs_all_below_it_and_a_copy_needs_nothing() -> None:
    assert [step.needs for step in planned(sample()).steps] == [(), (0,), (), (0, 1, 2)]


def test_packages_on_a_foreign_base_also_need_the_commands_before_them() -> None:
    image = Image.from_oci("oci:x").run("install python").copy_local("/host/app", "/app").pip_install("a")
    assert planned(image).steps[-1].needs == (0, 1)


def test_a_changed_tree_changes_its_own_step_and_the_commands_above() -> None:
    before, after = keys(sample(), tree=b"1"), keys(sample(), tree=b"2")
    assert [one == two for one, two in zip(before, after, strict=True)] == [True, True, False, False]


def test_a_variable_changes_only_the_commands_that_see_it() -> None:
    image = Image.debian_slim().pip_install("numpy").run("true")
    assert keys(image)[:2] == keys(image.env(A="1"))[:2]
    assert keys(Image.debian_slim().env(A="1").run("true"))[1] != keys(Image.debian_slim().run("true"))[1]


def test_credentials_of_an_index_are_in_no_key() -> None:
    with_password = PipSettings(index_url="https://me:hunter2@pypi.example/simple")
    without = PipSettings(index_url="https://pypi.example/simple")
    other = PipSettings(index_url="https://other.example/simple")
    assert keys(sample(), settings=with_password) == keys(sample(), settings=without)
    assert keys(sample(), settings=other)[1] != keys(sample(), settings=without)[1]


def test_keys_do_not_depend_on_the_process() -> None:
    code = "from tests.unit.imagebuilder.test_plan import keys, sample; print(*keys(sample()))"
    found = set()
    for seed, zone in (("0", "UTC"), ("1", "Asia/Tokyo"), ("2", "UTC")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": zone, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        found.add(done.stdout.strip())
    assert found == {" ".join(keys(sample()))}


def test_a_python_that_no_debian_has_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UsageError, match=r"got 3\.12, want .*3\.11 \(bookworm\).*3\.13 \(trixie\)"):
        planned(Image.debian_slim(python_version="3.12"))


def test_the_config_is_the_bases_with_what_the_image_says_over_it() -> None:
    base = {"architecture": "arm64", "os": "linux", "history": [{"created": "now"}],
            "config": {"Env": ["PATH=/x", "A=old"], "Cmd": ["sh"], "Labels": {"l": "1"}}}  # fmt: skip
    context = planned(Image.from_oci("oci:x").env(A="new", B="2").entrypoint("/app").workdir("/w")).context
    config = image_config(base, context, "amd64")
    assert config["architecture"] == "arm64"
    assert config["config"] == {
        "Env": ["PATH=/x", "A=new", "B=2"], "Entrypoint": ["/app"], "WorkingDir": "/w", "Labels": {"l": "1"},
    }  # fmt: skip
    assert "history" not in config


def test_an_image_without_a_config_still_has_a_path() -> None:
    inner = image_config({}, Context(), "amd64")["config"]
    assert isinstance(inner, dict)
    assert inner["Env"][0].startswith("PATH=/usr/local/sbin:")
