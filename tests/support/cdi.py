"""CDI specs for tests: one with every field, after the examples of the specification, and hostile ones."""

from __future__ import annotations

from typing import Any


def whole_spec(**changes: Any) -> dict[str, Any]:
    """Every kind of edit, at both levels."""
    return {
        "cdiVersion": "1.0.0",
        "kind": "vendor.com/device",
        "annotations": {"made-by": "a test"},
        "devices": [
            {
                "name": "card1",
                "annotations": {"slot": "1"},
                "containerEdits": {
                    "env": ["CARD=1"],
                    "deviceNodes": [
                        {
                            "path": "/dev/card1",
                            "hostPath": "/vendor/dev/card1",
                            "type": "c",
                            "major": 25,
                            "minor": 25,
                            "fileMode": 0o600,
                            "permissions": "wr",
                            "uid": 1000,
                            "gid": 1001,
                        },
                        {"path": "/dev/card-render1", "type": "c", "major": 25, "minor": 26},
                    ],
                },
            },
            {"name": "2nd", "containerEdits": {"env": ["CARD=2", "SECOND=yes"], "additionalGids": [0, 44]}},
        ],
        "containerEdits": {
            "env": ["FOO=SPEC", "BAR=a=b"],
            "deviceNodes": [{"path": "/dev/vendorctl", "type": "b", "major": 26, "minor": 0, "permissions": "none"}],
            "mounts": [
                {"hostPath": "/bin/vendor", "containerPath": "/usr/bin/vendor"},
                {
                    "hostPath": "/usr/lib/libVendor.so.0",
                    "containerPath": "/usr/lib/libVendor.so.0",
                    "options": ["ro", "nosuid", "nodev", "bind"],
                },
                {
                    "hostPath": "tmpfs",
                    "containerPath": "/tmp/data",
                    "type": "tmpfs",
                    "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
                },
            ],
            "hooks": [
                {"hookName": "createContainer", "path": "/bin/true", "args": ["vendor-hook", "x"], "env": ["A=b"]},
                {"hookName": "startContainer", "path": "/usr/bin/ldconfig", "timeout": 7},
            ],
            "additionalGids": [44, 45],
            "intelRdt": {"closID": "group", "l3CacheSchema": "L3:0=f"},
        },
        **changes,
    }


def small_spec(kind: str = "vendor.com/gpu", devices: tuple[str, ...] = ("0",), **edits: Any) -> dict[str, Any]:
    """Devices that set a variable of their own name."""
    return {
        "cdiVersion": "0.6.0",
        "kind": kind,
        "devices": [{"name": name, "containerEdits": {"env": [f"DEVICE_{name}=1"]}} for name in devices],
        "containerEdits": edits,
    }
