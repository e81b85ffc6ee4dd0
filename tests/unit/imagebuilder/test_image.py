from __future__ import annotations

import dataclasses
from types import FunctionType

import pytest

from cext.errors import UsageError
from imagebuilder.image import CopyLocal, Image


def test_a_method_gives_a_new_image_and_leaves_the_old_one_alone() -> None:
    base = Image.debian_slim()
    more = base.env(A="1")
    assert base.operations == ()
    assert len(more.operations) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        base.operations = ()  # type: ignore[misc]


def test_images_are_equal_wherever_they_were_written_down() -> None:
    one = Image.debian_slim(packages=["git", "curl"]).pip_install("numpy")
    two = Image.debian_slim(packages=["curl", "git", "curl"]).pip_install("numpy")
    assert one == two
    assert hash(one) == hash(two)


def test_a_relative_path_is_relative_to_the_image_file() -> None:
    action = Image.debian_slim().copy_local("x/../app.py", "/app/").operations[0].action
    assert isinstance(action, CopyLocal)
    assert action.source == __file__.rpartition("/")[0] + "/app.py"


@pytest.mark.parametrize(
    "call",
    [
        lambda: Image.debian_slim(python_version="3"),
        lambda: Image.debian_slim(python_version=3.11),  # type: ignore[arg-type]
        lambda: Image.debian_slim(packages="git"),
        lambda: Image.debian_slim(packages=["git; rm -rf /"]),
        lambda: Image.from_oci(""),
        lambda: Image.debian_slim().pip_install(),
        lambda: Image.debian_slim().pip_install("--index-url=http://evil"),
        lambda: Image.debian_slim().pip_install("a\n--pre"),
        lambda: Image.debian_slim().copy_local("a", "relative"),
        lambda: Image.debian_slim().copy_local("a", "/a/../../etc"),
        lambda: Image.debian_slim().run(),
        lambda: Image.debian_slim().run("x", secrets=["../../etc/passwd"]),
        lambda: Image.debian_slim().env({"A=B": "1"}),
        lambda: Image.debian_slim().env(A=1),  # type: ignore[arg-type]
        lambda: Image.debian_slim().workdir("relative"),
        lambda: Image.debian_slim().cmd("a\0b"),
    ],
)
def test_a_wrong_argument_is_refused_with_the_line_that_gave_it(call: object) -> None:
    assert isinstance(call, FunctionType)
    with pytest.raises(UsageError) as caught:
        call()
    assert str(caught.value).startswith(f"{__file__}:{call.__code__.co_firstlineno}: ")
    assert ", want " in str(caught.value)
