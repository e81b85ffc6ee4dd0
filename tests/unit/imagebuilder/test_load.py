from __future__ import annotations

from pathlib import Path

import pytest

from cext.errors import UsageError
from imagebuilder.errors import ImageFileError
from imagebuilder.image import Image
from imagebuilder.load import default_tag, load_image, split


def written(directory: Path, text: str) -> str:
    path = directory / "image.py"
    path.write_text(text)
    return str(path)


def test_an_image_is_found_under_its_name(tmp_path: Path) -> None:
    path = written(tmp_path, "from onesec import Image\nimage = Image.debian_slim()\nother = image.env(A='1')\n")
    assert load_image(path, "image") == Image.debian_slim()
    assert load_image(path, "other") == Image.debian_slim().env(A="1")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.py: no such file"):
        load_image(str(tmp_path / "nowhere.py"), "image")


def test_a_missing_name_tells_which_names_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no 'image'") as caught:
        load_image(written(tmp_path, "from onesec import Image\nbase = Image.debian_slim()\n"), "image")
    assert caught.value.hint is not None
    assert "base" in caught.value.hint


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="image: got int, want an Image"):
        load_image(written(tmp_path, "image = 3\n"), "image")


def test_a_failure_of_the_users_code_names_the_users_lines_only(tmp_path: Path) -> None:
    path = written(tmp_path, "def fail():\n    return {}['missing']\nfail()\n")
    with pytest.raises(ImageFileError) as caught:
        load_image(path, "image")
    assert str(caught.value) == f"{path}:3 in <module> > {path}:2 in fail: KeyError: 'missing'"


def test_a_syntax_error_names_the_line(tmp_path: Path) -> None:
    path = written(tmp_path, "x = 1\ny = (\n")
    with pytest.raises(ImageFileError, match=r"image\.py:2: "):
        load_image(path, "image")


def test_a_wrong_argument_names_the_line_of_the_image_file(tmp_path: Path) -> None:
    path = written(tmp_path, "from onesec import Image\n\nimage = Image.debian_slim().run()\n")
    with pytest.raises(UsageError, match=rf"^{path}:3: run: got nothing"):
        load_image(path, "image")


def test_the_words_of_the_call_split_into_file_and_name() -> None:
    assert split("image.py") == ("image.py", "image")
    assert split("a/b.py:gpu") == ("a/b.py", "gpu")
    assert split("odd:dir/b.py") == ("odd:dir/b.py", "image")


def test_the_default_tag_comes_from_the_file_or_its_directory() -> None:
    assert default_tag("/x/My App/image.py") == "my-app"
    assert default_tag("/x/server.py") == "server"
