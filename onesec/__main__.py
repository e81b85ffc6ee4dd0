"""``python -m onesec``."""

from __future__ import annotations

from onesec.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
