"""Builds cext._native from every cext/src/*.c. The rest of the project's description is in pyproject.toml.

ONESEC_SANITIZE (comma-separated: address, undefined, thread) adds -fsanitize; `make sanitize` uses it in build
directories of their own.
"""

from __future__ import annotations

import os
from glob import glob

from setuptools import Extension, setup

sanitizers = [name for name in os.environ.get("ONESEC_SANITIZE", "").split(",") if name]
flags = [f"-fsanitize={','.join(sanitizers)}", "-fno-omit-frame-pointer", "-g"] if sanitizers else []

setup(
    ext_modules=[
        Extension(
            "cext._native",
            sources=sorted(glob("cext/src/*.c")),
            depends=sorted(glob("cext/src/*.h")),
            include_dirs=["cext/src"],
            extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", *flags],
            extra_link_args=["-pthread", *flags],
        )
    ]
)
