"""An image file is Python: it is executed, and leaves Image values under names."""

from __future__ import annotations

import os
import runpy
import traceback

from cext.errors import OnesecError, UsageError
from imagebuilder.errors import ImageFileError
from imagebuilder.image import Image

_FRAMES_MAX = 5


def split(text: str) -> tuple[str, str]:
    """FILE[:NAME] -> file and name."""
    path, colon, name = text.rpartition(":")
    if not colon or not name.isidentifier():
        return text, "image"
    return path, name


def load_image(path: str, name: str) -> Image:
    """Executes the file. Raises UsageError where it has no such image, ImageFileError where its code fails."""
    if not os.path.isfile(path):
        raise UsageError(f"{path}: no such file", hint="onesec build FILE[:NAME]")
    try:
        found = runpy.run_path(path, run_name="__onesec__")
    except OnesecError:
        raise
    except SyntaxError as error:
        raise ImageFileError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except SystemExit as error:
        raise ImageFileError(f"{path}: called exit({error.code!r})") from error
    except Exception as error:
        raise ImageFileError(_short(path, error)) from error
    if name not in found:
        images = sorted(key for key, value in found.items() if isinstance(value, Image))
        hint = f"it has {', '.join(images)}; say {path}:{images[0]}" if images else "image = Image.debian_slim()…"
        raise UsageError(f"{path}: has no {name!r}", hint=hint)
    value = found[name]
    if not isinstance(value, Image):
        raise UsageError(f"{path}: {name}: got {type(value).__name__}, want an Image")
    return value


def _short(path: str, error: Exception) -> str:
    """The user's frames, outermost first, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    start = next(
        (at for at, frame in enumerate(frames) if os.path.realpath(frame.filename) == os.path.realpath(path)), 0
    )
    places = " > ".join(f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames[start:][:_FRAMES_MAX])
    return f"{places}: {type(error).__name__}: {error}"


def default_tag(path: str) -> str:
    """From the file's name, or its directory's where that says nothing."""
    absolute = os.path.abspath(path)
    stem = os.path.splitext(os.path.basename(absolute))[0]
    name = os.path.basename(os.path.dirname(absolute)) if stem in ("image", "images", "onesec", "main") else stem
    return (
        "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name.lower()).strip("-")
        or "image"
    )
