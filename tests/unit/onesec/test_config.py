from __future__ import annotations

from pathlib import Path

import pytest

from cext.errors import UsageError
from onesec.config import RegistrySettings, StoreLimits, load


def write(tmp_path: Path, text: str) -> dict[str, str]:
    (tmp_path / "onesec.toml").write_text(text)
    return {"ONESEC_CONFIG": str(tmp_path / "onesec.toml")}


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, 'root = "/file"\nrun-dir = "/file-run"\n')
    assert str(load(file).root) == "/file"
    assert str(load({**file, "ONESEC_ROOT": "/env"}).root) == "/env"
    assert str(load({**file, "ONESEC_ROOT": "/env"}, root="/flag").root) == "/flag"
    assert str(load(file).run_dir) == "/file-run"


def test_every_setting_is_read(tmp_path: Path) -> None:
    text = """
    [run]
    runtime = "runc"
    scratch = "memory"
    prefetch = "1 MiB"
    prefetch-after = 2.5
    learn = false
    [store]
    quota = "20GiB"
    floor = "512 MiB"
    [registry."localhost:5000"]
    plain-http = true
    ca = "/ca.pem"
    mirrors = ["m.example"]
    """
    config = load(write(tmp_path, text))
    assert (config.run.runtime, config.run.scratch, config.run.prefetch) == ("runc", "memory", 1 << 20)
    assert (config.run.prefetch_after_s, config.run.learn) == (2.5, False)
    assert config.store == StoreLimits(20 << 30, 512 << 20)
    assert config.registries == {"localhost:5000": RegistrySettings(True, Path("/ca.pem"), ("m.example",))}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rooot = 1", "rooot: no such setting"),
        ("root = 1", "root: got 1, want a string"),
        ("[run]\nscratch = 'tape'", "run.scratch: got 'tape', want disk or memory"),
        ("[run]\nprefetch = 'all'", "run.prefetch: got 'all', want a size like 20GiB"),
        ("[run]\nprefetch-after = -1", "run.prefetch-after: got -1, want seconds, 0 to 86400"),
        ("[run]\nx = 1", "run.x: no such setting"),
        ("[store]\nquota = 20", "store.quota: got 20, want a string"),
        ("[store]\nquota = '20GB'", "store.quota: got '20GB', want a size like 20GiB"),
        ("[store]\nfloor = '-1'", "store.floor: got '-1', want a size like 20GiB"),
        ("[store]\nfloor = 'GiB'", "store.floor: got 'GiB', want a size like 20GiB"),
        ("[store]\nsize = '1'", "store.size: no such setting"),
        ("registry = 3", "registry: got 3, want a table"),
        ("[registry.h]\nplain-http = 'yes'", "registry.h.plain-http: got 'yes', want true or false"),
        ("[registry.h]\nmirrors = [1]", "want a list of strings"),
        ("=", "not valid TOML"),
    ],
)
def test_a_wrong_setting_names_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(write(tmp_path, text))
    assert str(caught.value).startswith(str(tmp_path / "onesec.toml"))
    assert words in str(caught.value)


@pytest.mark.parametrize(("text", "size"), [("0", 0), ("7", 7), ("7B", 7), ("3KiB", 3072), ("1 TiB", 1 << 40)])
def test_sizes_have_units(tmp_path: Path, text: str, size: int) -> None:
    assert load(write(tmp_path, f"[store]\nquota = '{text}'")).store == StoreLimits(size, None)


def test_a_named_file_has_to_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load({"ONESEC_CONFIG": str(tmp_path / "nope")})


def test_a_file_that_is_nested_too_deep_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "onesec.toml"
    path.write_text("mirrors = " + "[" * 4100)
    with pytest.raises(UsageError, match="not valid TOML"):
        load({"ONESEC_CONFIG": str(path)})
