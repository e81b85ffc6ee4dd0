"""``python -m onesec``."""

from __future__ import annotations

from onesec.cli.main import entry

if __name__ == "__main__":
    entry()
