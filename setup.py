"""Builds cext._native from cext/src/*.c, with BLAKE3 from Debian's source package compiled in, and cext._fetch from the
fetch engine's files, with libcurl: a module of its own, so that who fetches nothing does not load libcurl either.

The rest of the project's description is in pyproject.toml. ONESEC_SANITIZE (comma-separated: address, undefined,
thread) adds -fsanitize; `make sanitize` uses it in build directories of their own. ONESEC_WERROR makes warnings errors.
"""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sanitizers = [name for name in os.environ.get("ONESEC_SANITIZE", "").split(",") if name]
flags = [f"-fsanitize={','.join(sanitizers)}", "-fno-omit-frame-pointer", "-g"] if sanitizers else []
HEADERS = [("zstd.h", "libzstd-dev"), ("lmdb.h", "liblmdb-dev"), ("curl/curl.h", "libcurl4-openssl-dev")]
# A compiler that warns of something new must not keep a user from installing; ours must (Makefile, .ci/sanitize).
STRICT = ["-Wall", "-Wextra", *(["-Werror"] if os.environ.get("ONESEC_WERROR") else [])]
FETCH = ["os_fetch*.c", "py_fetch*.c"]
SHARED = ["os_env.c", "os_log.c", "os_result.c", "py_common.c"]
COMMON = ["-std=gnu11", "-O3", "-fvisibility=hidden", *flags]


def blake3_directory() -> Path:
    found = sorted(glob("/usr/share/cargo/registry/blake3-*/c/blake3.h"))
    if not found:
        raise SystemExit("blake3 sources: not found, want the package librust-blake3-dev (apt-get install it)")
    return Path(found[-1]).parent


def blake3_sources() -> tuple[list[str], list[str]]:
    """Sources and macros for this processor."""
    names, macros = ["blake3.c", "blake3_dispatch.c", "blake3_portable.c"], []
    if platform.machine() == "x86_64":
        names += [f"blake3_{name}_x86-64_unix.S" for name in ("sse2", "sse41", "avx2", "avx512")]
    elif platform.machine() == "aarch64":
        names, macros = [*names, "blake3_neon.c"], ["-DBLAKE3_USE_NEON=1"]
    return [str(blake3_directory() / name) for name in names], macros


def matching(patterns: list[str]) -> list[str]:
    return sorted(path for pattern in patterns for path in glob(f"cext/src/{pattern}"))


class BuildExt(build_ext):
    def build_extensions(self) -> None:
        """With as many compilers as there are processors. distutils compiles the files of an extension one by one; each
        of its own steps is left as it is, as pybind11's ParallelCompile does.
        """
        compiler = self.compiler

        def compile(
            sources: list[str], output_dir: Any, macros: Any, include_dirs: Any, debug: Any, extra_preargs: Any = None,
            extra_postargs: Any = None, depends: Any = None,
        ) -> list[str]:  # fmt: skip
            _, objects, last, options, build = compiler._setup_compile(
                output_dir, macros, include_dirs, sources, depends, extra_postargs
            )
            first = compiler._get_cc_args(options, debug, extra_preargs)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for done in [pool.submit(compiler._compile, at, *build[at], first, last, options) for at in build]:
                    done.result()
            return list(objects)

        compiler.compile = compile
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        for header, package in HEADERS:
            if not glob(f"/usr/include/{header}") + glob(f"/usr/include/*/{header}"):
                raise SystemExit(f"{header}: not found, want the package {package} (apt-get install it)")
        if ext.name == "cext._native":
            self.build_blake3(ext)
        super().build_extension(ext)

    def build_blake3(self, ext: Extension) -> None:
        sources, macros = blake3_sources()
        if ".S" not in self.compiler.src_extensions:
            self.compiler.src_extensions.append(".S")
        place = Path(self.build_temp, "blake3")
        place.mkdir(parents=True, exist_ok=True)
        for source in sources:
            made = place / (Path(source).name + ".o")
            if not made.exists() or made.stat().st_mtime < Path(source).stat().st_mtime:
                self.spawn([*self.compiler.compiler_so, *COMMON, *macros, "-fPIC", "-c", source, "-o", str(made)])
            ext.extra_objects.append(str(made))


setup(
    license="Apache-2.0",
    cmdclass={"build_ext": BuildExt},
    ext_modules=[
        Extension(
            "cext._native",
            sources=sorted(set(matching(["*.c"])) - set(matching(FETCH))),
            depends=sorted(glob("cext/src/*.h")),
            include_dirs=["cext/src", str(blake3_directory())],
            libraries=["zstd", "lmdb"],
            extra_compile_args=[*COMMON, *STRICT],
            extra_link_args=["-pthread", *flags],
        ),
        Extension(
            "cext._fetch",
            sources=matching([*FETCH, *SHARED]),
            depends=sorted(glob("cext/src/*.h")),
            include_dirs=["cext/src"],
            libraries=["curl"],
            extra_compile_args=[*COMMON, *STRICT],
            extra_link_args=["-pthread", *flags],
        ),
    ],
)
