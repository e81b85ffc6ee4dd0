"""What the fetch engine costs: a blob of 1 GiB from nginx over loopback, plain and with TLS.

    python -m benchmarks.macro.fetch [MIB]

Prints one line of JSON for each. Both ends share the machine, so GB/s says little; the seconds of a core that the
engine's thread used for a GB is what to look at: 1 Gbit/s is 0.125 of it, 10 Gbit/s 1.25.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from cext.fetch import Fetcher

READ = 16 << 20
_CONFIGURATION = """
daemon off; worker_processes 1; user root; pid {here}/pid; error_log {here}/error;
events {{ worker_connections 512; }}
http {{
    access_log off; sendfile on; keepalive_requests 1000000; root {here}/www;
    server {{ listen 127.0.0.1:{plain}; }}
    server {{ listen 127.0.0.1:{tls} ssl; ssl_certificate {here}/pem; ssl_certificate_key {here}/key; }}
    server {{ listen 127.0.0.1:{http2} ssl http2; ssl_certificate {here}/pem; ssl_certificate_key {here}/key; }}
}}
"""


def main() -> None:
    size = (int(sys.argv[1]) if len(sys.argv) > 1 else 1024) << 20
    with tempfile.TemporaryDirectory() as name, served(Path(name), size) as ports:
        for kind, port in ports.items():
            scheme = "http" if kind == "plain" else "https"
            print(json.dumps({"server": kind, **measure(f"{scheme}://127.0.0.1:{port}/blob", size, f"{name}/pem")}))


@contextmanager
def served(here: Path, size: int) -> Iterator[dict[str, int]]:
    (here / "www").mkdir()
    with open(here / "www/blob", "wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*words, "-keyout", here / "key", "-out", here / "pem"], check=True, capture_output=True)
    ports = dict(zip(("plain", "tls", "http2"), free_ports(3), strict=True))
    (here / "conf").write_text(_CONFIGURATION.format(here=here, **ports))
    server = subprocess.Popen(["nginx", "-p", here, "-c", here / "conf", "-e", here / "error"])
    try:
        time.sleep(0.5)
        yield ports
    finally:
        server.terminate()
        server.wait()


def free_ports(count: int) -> list[int]:
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def measure(url: str, size: int, authorities: str) -> dict[str, float]:
    before = set(os.listdir("/proc/self/task"))
    with Fetcher(authorities=authorities) as fetcher:
        (engine,) = set(os.listdir("/proc/self/task")) - before
        fetcher.set_source(1, url)
        fetcher.set_origin(1, [1])
        start = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            places = range(0, size, READ)
            got = sum(len(one) for one in pool.map(lambda at: read(fetcher, size, at), places))
        seconds = time.monotonic() - start
        used = cpu_of(engine)
        statistics = fetcher.statistics()
    return {
        "GB/s": round(got / seconds / 1e9, 3),
        "core seconds/GB": round(used / (got / 1e9), 3),
        "connections": statistics["connections"],
        "p95 ms": round(statistics["p95_ns"] / 1e6, 1),
    }


def read(fetcher: Fetcher, size: int, at: int) -> bytes:
    return fetcher.read(1, bytes(32), size, at, min(READ, size - at))[0]


def cpu_of(thread: str) -> float:
    with open(f"/proc/self/task/{thread}/stat") as file:
        words = file.read().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
