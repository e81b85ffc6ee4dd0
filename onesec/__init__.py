"""onesec: container images from Python that start lazily.

The public names are looked up on first use, so that ``onesec run`` does not pay for the image builder.
"""

from __future__ import annotations

__version__ = "0.1.0"

# public name -> the module that defines it
_EXPORTS: dict[str, str] = {"Image": "imagebuilder.image"}


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)
