from __future__ import annotations

import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from imagebuilder.guess import COMMANDS_MAX, start_pages
from imagebuilder.pages import Contents, object_id
from lazyfs.bootpack import encode
from lazyfs.index.model import Entry
from tests.support.guessing import Content, Image

ELF = Path(shutil.which("true", path="/usr/bin:/bin") or "/bin/true").read_bytes()
PYTHON: dict[str, Content] = {
    "usr/bin/python3.11": (ELF,),
    "usr/bin/python3": "python3.11",
    "usr/lib/python3.11/encodings/__init__.py": b"from . import aliases\nimport codecs",
    "usr/lib/python3.11/encodings/__pycache__/__init__.cpython-311.pyc": b"encodings pyc",
    "usr/lib/python3.11/encodings/aliases.py": b"# aliases",
    "usr/lib/python3.11/codecs.py": b"import never",
    "usr/lib/python3.11/never.py": b"# a frozen module's imports are in the interpreter",
    "usr/lib/python3.11/json/__init__.py": b"from .decoder import JSONDecoder\n",
    "usr/lib/python3.11/json/decoder.py": b"import re\ntry:\n    from _json import x\nexcept ImportError:\n    x = 0\n",
    "usr/lib/python3.11/re.py": b"x = 1",
    "usr/lib/python3.11/lib-dynload/_json.cpython-311-x86_64-linux-gnu.so": ELF[:-1] + b"j",
    "usr/local/lib/python3.11/dist-packages/pack.pth": b"import site_pack\n",
    "usr/local/lib/python3.11/dist-packages/pack/__init__.py": b"",
    "usr/local/lib/python3.11/dist-packages/pack/inner.py": b"from pack import other\nfrom .deep.er import f",
    "usr/local/lib/python3.11/dist-packages/pack/other.py": b"def f():\n    import lazy\n",
    "usr/local/lib/python3.11/dist-packages/pack/deep/__init__.py": b"# deep",
    "usr/local/lib/python3.11/dist-packages/pack/deep/er.py": b"from ..sibling import g",
    "usr/local/lib/python3.11/dist-packages/pack/sibling.py": b"# sibling",
    "usr/local/lib/python3.11/dist-packages/lazy.py": b"# only when f runs",
    "app/main.py": b"import json\nimport helper\nfrom pack import inner\n",
    "app/helper.py": b"# beside the program",
}
PACK = "usr/local/lib/python3.11/dist-packages/pack"


def test_a_python_program_brings_its_imports_in_their_order() -> None:
    found = list(Image(PYTHON).guess("python3", "main.py", WorkingDir="/app"))
    assert found[0] == "usr/bin/python3.11"
    start = [name for name in found if name.startswith(("usr/lib/python3.11/enc", "app/", "usr/lib/python3.11/json"))]
    assert start == [
        "usr/lib/python3.11/encodings/__pycache__/__init__.cpython-311.pyc",
        "usr/lib/python3.11/encodings/aliases.py",
        "app/main.py",
        "usr/lib/python3.11/json/__init__.py",
        "usr/lib/python3.11/json/decoder.py",
        "app/helper.py",
    ]
    assert {"usr/lib/python3.11/re.py", "usr/lib/python3.11/lib-dynload/_json.cpython-311-x86_64-linux-gnu.so"} <= {
        *found
    }
    assert [name for name in found if name.startswith(PACK)] == [
        f"{PACK}.pth",
        f"{PACK}/inner.py",
        f"{PACK}/other.py",
        f"{PACK}/deep/__init__.py",
        f"{PACK}/deep/er.py",
        f"{PACK}/sibling.py",
    ]


def test_bytecode_takes_the_place_of_its_source_and_what_does_not_run_is_left_out() -> None:
    found = Image(PYTHON).guess("python3", "main.py", WorkingDir="/app")
    assert "usr/lib/python3.11/encodings/__init__.py" not in found
    assert "usr/local/lib/python3.11/dist-packages/lazy.py" not in found
    assert "usr/lib/python3.11/never.py" not in found


@pytest.mark.parametrize(
    "words",
    [
        ["/usr/bin/python3", "/app/main.py"],
        ["python3", "-u", "-X", "dev", "-W", "error", "main.py", "--flag"],
        ["sh", "-c", "cd /app && exec python3 main.py"],
        ["sh", "-ec", "A=b python3 main.py; true"],
        ["tini", "--", "python3", "main.py"],
        ["env", "A=b", "python3", "main.py"],
        ["/app/run", "x"],
        ["/app/start.sh", "python3", "main.py"],
        ["python3", "-c", "import json; from pack import inner\nimport helper"],
        ["python3", "-m", "main"],
        ["serve", "main:app"],
    ],
)
def test_the_program_is_found_behind_what_starts_it(words: list[str]) -> None:
    image = Image(
        {
            **PYTHON,
            **{f"bin/{name}": (ELF + name.encode(),) for name in ("sh", "tini", "env")},
            "usr/bin/env": "/bin/env",
            "app/run": (b"#!/usr/bin/env -S python3 -u\nimport json, helper\nfrom pack import inner\n",),
            "app/start.sh": (b'#!/bin/sh\nexec "$@"\n',),
            "usr/bin/serve": (b"#!/usr/bin/python3\n# imports what its arguments name\n",),
        }
    )
    found = image.guess(*words, WorkingDir="/app", Env=["PATH=/usr/bin:/bin"])
    wanted = {"usr/bin/python3.11", "usr/lib/python3.11/json/decoder.py", f"{PACK}/inner.py", "app/helper.py"}
    assert wanted <= {*found}


def test_entrypoint_and_command_are_one_call() -> None:
    found = Image(PYTHON).guess("main.py", Entrypoint=["python3"], WorkingDir="/app")
    assert "app/helper.py" in found


def test_an_environment_of_its_own_comes_before_the_system() -> None:
    image = Image(
        {
            **PYTHON,
            "venv/bin/python": "/usr/bin/python3",
            "venv/pyvenv.cfg": b"home = /usr/bin\n",
            "venv/lib/python3.11/site-packages/pack/__init__.py": b"# another",
            "venv/lib/python3.11/site-packages/pack/inner.py": b"# another inner",
        }
    )
    found = image.guess("/venv/bin/python", "main.py", WorkingDir="/app")
    assert {"venv/pyvenv.cfg", "venv/lib/python3.11/site-packages/pack/inner.py"} <= {*found}
    assert f"{PACK}/inner.py" not in found


def test_libraries_are_looked_for_where_the_loader_looks(tmp_path: Path, real_machine: None) -> None:
    import subprocess

    (tmp_path / "l.c").write_text("int f(void) { return 0; }")
    (tmp_path / "m.c").write_text("int f(void); int main(void) { return f(); }")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "liba.so", "l.c"], cwd=tmp_path, check=True)
    words = ["cc", "-o", "main", "m.c", "-L.", "-la", "-Wl,--enable-new-dtags,-rpath,$ORIGIN/../lib"]
    subprocess.run(words, cwd=tmp_path, check=True)
    library = (tmp_path / "liba.so").read_bytes()
    image = Image(
        {
            "opt/bin/main": ((tmp_path / "main").read_bytes(),),
            "opt/lib/liba.so": "liba.so.1",
            "opt/lib/liba.so.1": library,
            "usr/lib/liba.so": library + b"another",
            "vendor/libc.so.6": library + b"a C library",
            "etc/ld.so.conf.d/vendor.conf": b"# where ours is\n/vendor\n",
            "lib64/ld-linux-x86-64.so.2": (ELF + b"loader",),
            "etc/passwd": b"root:x:0:0::/root:/bin/sh\n",
        }
    )
    found = image.guess("/opt/bin/main")
    assert {"opt/bin/main", "opt/lib/liba.so.1", "vendor/libc.so.6", "etc/passwd"} <= {*found}
    assert "usr/lib/liba.so" not in found
    assert "usr/lib/liba.so" in image.guess("/opt/bin/main", Env=["LD_LIBRARY_PATH=/usr/lib"])


def test_the_same_image_gives_the_same_pages_and_a_budget_cuts_the_end() -> None:
    config = {"config": {"Cmd": ["python3", "main.py"], "WorkingDir": "/app"}}
    image = Image(PYTHON)
    whole, _ = start_pages(image.tree, Contents(image.chunk), config)
    again, _ = start_pages(Image(PYTHON).tree, Contents(image.chunk), config)
    assert whole == again
    for pages in (0, 1, 10):
        cut, _ = start_pages(image.tree, Contents(image.chunk), config, budget=pages * 4096)
        assert cut == whole[:pages]


def test_a_boot_pack_can_be_made_of_it() -> None:
    image = Image(PYTHON)
    contents = Contents(image.chunk)
    pages, files = start_pages(image.tree, contents, {"config": {"Cmd": ["python3", "/app/main.py"]}})
    made = encode(
        pages, lambda one: files[one].size, lambda run: contents.read(files[run.object], run.offset, run.length)
    )
    assert made.pages == len(pages)


def test_no_command_and_a_program_that_is_not_there_give_nothing() -> None:
    image = Image(PYTHON)
    assert image.guess() == image.guess("nope") == image.guess("/etc/passwd") == image.guess("") == {}
    assert start_pages(image.tree, Contents(image.chunk), {}) == ([], {})


def test_chunks_that_are_not_here_leave_files_out_and_fail_nothing() -> None:
    image = Image(PYTHON)
    image.chunks.clear()
    assert list(image.guess("python3", "main.py", WorkingDir="/app")) != []


# ---------------------------------------------------------------------- hostile images


def test_links_that_go_round_or_out_lead_nowhere() -> None:
    image = Image(
        {
            "bin/a": "b",
            "bin/b": "a",
            "bin/out": "../../../../../../etc/script",
            "bin/long": "x/" * 2000 + "y",
            "etc/script": (b"#!/bin/a\n",),
        }
    )
    assert image.guess("/bin/a") == image.guess("/bin/long") == {}
    assert list(image.guess("/bin/out")) == ["etc/script"]


def test_scripts_that_start_each_other_come_to_an_end() -> None:
    image = Image({"bin/a": (b"#!/bin/b\n",), "bin/b": (b"#!/bin/a\n",), "bin/env": (ELF,), "bin/sh": (ELF + b"sh",)})
    assert set(image.guess("/bin/a")) == {"bin/a", "bin/b"}
    assert list(image.guess(*["env"] * 5000)) == ["bin/env"]
    assert list(image.guess("sh", "-c", "; ".join(["sh -c 'true'"] * (COMMANDS_MAX * 3)))) == ["bin/sh"]


def test_modules_that_import_each_other_deeply_need_no_stack() -> None:
    files: dict[str, Content] = {**PYTHON, "app/main.py": b"import m0"}
    files |= {f"app/m{number}.py": f"import m{number + 1}, m{number // 2}".encode() for number in range(3000)}
    assert "app/m2999.py" in Image(files).guess("python3", "main.py", WorkingDir="/app")


def test_a_file_that_says_it_is_huge_costs_the_budget_and_no_more() -> None:
    image = Image({"bin/x": (b"#!/bin/y\n",), "bin/y": (ELF,)})
    entry = image.tree.lookup(b"bin/x")
    assert entry is not None
    contents = Contents(image.chunk)
    huge = replace(entry, size=1 << 60, parts=((1 << 60).to_bytes(8, "little") + bytes(32)))

    class Tree:
        def lookup(self, path: bytes) -> Entry | None:
            return huge if path == b"bin/x" else image.tree.lookup(path)

        def names(self, path: bytes) -> list[bytes]:
            return image.tree.names(path)

    pages, _ = start_pages(Tree(), contents, {"config": {"Cmd": ["/bin/x"]}}, budget=1 << 20)
    assert len(pages) <= 256


def test_whatever_a_configuration_says_ends_soon() -> None:
    image = Image(PYTHON)
    half = "\ud800"
    assert image.guess(half, f"/{half}", Env=[f"{half}={half}", f"PATH={half}"], WorkingDir=half) == {}
    many = ":".join(f"/usr/lib/.{'/.' * (number % 300)}/python3.11{'/' * (number // 300)}" for number in range(60_000))
    began = time.process_time()
    found = image.guess("python3", "main.py", WorkingDir="/app", Env=[f"PYTHONPATH={many}"])
    assert "usr/bin/python3.11" in found
    image.guess("nope", Env=[f"PATH={many}"])
    assert time.process_time() - began < 30


def test_random_bytes_in_every_file_fail_nothing() -> None:
    draw = random.Random(9)
    for _ in range(150):
        files = dict(PYTHON)
        for name in draw.sample(sorted(files), 4):
            files[name] = draw.choice(
                ((draw.randbytes(3000),), ELF[: draw.randrange(len(ELF))], "/" + draw.choice(sorted(files)))
            )
        Image(files).guess("python3", "main.py", WorkingDir="/app", Env=["PATH=/usr/bin"])


def test_an_object_s_id_is_that_of_the_format() -> None:
    from tests.support.objects import object_id as by_hand

    entry = Image({"x": b"content"}).tree.lookup(b"x")
    assert entry is not None
    parts = [(int.from_bytes(entry.parts[:8], "little"), entry.parts[8:40])]
    assert object_id(entry) == by_hand(1, parts)
