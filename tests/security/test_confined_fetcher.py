"""Inside a process that may read packs from the network and nothing else: what it tries, by each name of a call."""

from __future__ import annotations

import errno
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("real_machine")

INSIDE = """
import ctypes, errno, json, os, signal, socket, sys, threading
sys.path.insert(0, sys.argv[1])
place, port, legacy = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "x86_64"
import cext
import cext.fetch
libc = ctypes.CDLL(None, use_errno=True)
socket.getaddrinfo("localhost", 80)
directory = os.open(place, os.O_RDONLY)
victim = os.open(place + "/victim", os.O_RDWR)
listener = socket.socket()
cext.keep_to_network(65534)

def attempt(call):
    try:
        call()
        return 0
    except OSError as error:
        return error.errno

def raw(number, *words):
    def call():
        words_ = [ctypes.c_long(word) if isinstance(word, int) else word for word in words]
        if libc.syscall(ctypes.c_long(number), *words_) < 0:
            raise OSError(ctypes.get_errno(), "")
    return call

here = place.encode()
W = os.O_RDWR | os.O_CREAT
calls = {
    "open to write": lambda: os.open("/tmp/new", W),
    "open to append": lambda: os.open("/tmp/victim", os.O_APPEND),
    "unlink": lambda: os.unlink("victim", dir_fd=directory),
    "rename": lambda: os.rename("victim", "other", src_dir_fd=directory, dst_dir_fd=directory),
    "mkdir": lambda: os.mkdir("made", dir_fd=directory),
    "link": lambda: os.link(place + "/victim", place + "/second"),
    "symlink": lambda: os.symlink("a", place + "/link"),
    "mknod": lambda: os.mkfifo(place + "/fifo"),
    "chmod": lambda: os.chmod(place + "/victim", 0o777),
    "fchmod": lambda: os.fchmod(victim, 0o777),
    "fchown": lambda: os.fchown(victim, 65534, 65534),
    "truncate": lambda: os.truncate(place + "/victim", 0),
    "ftruncate": lambda: os.ftruncate(victim, 0),
    "pwrite": lambda: os.pwrite(victim, b"x", 0),
    "utime": lambda: os.utime(place + "/victim"),
    "setxattr": lambda: os.setxattr(place + "/victim", "user.a", b"x"),
    "chdir": lambda: os.chdir("/"),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "exec of a descriptor": lambda: os.execve(victim, ["true"], {}),
    "fork": os.fork,
    "kill": lambda: os.kill(os.getppid(), 0),
    "listen": listener.listen,
    "accept": listener.accept,
    "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "local socket": lambda: socket.socket(socket.AF_UNIX),
    "vsock": lambda: socket.socket(40, socket.SOCK_STREAM),
    "memfd": lambda: os.memfd_create("x"),
    "setuid": lambda: os.setuid(0),
    "setsid": os.setsid,
    "priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, 5),
    "pidfd": lambda: os.pidfd_open(os.getppid()),
    "limits": lambda: __import__("resource").setrlimit(7, (100, 100)),
    "executable memory": lambda: (_ for _ in ()).throw(OSError(errno.EPERM, ""))
        if libc.mprotect(ctypes.c_void_p(0x10000), 4096, 7) < 0 and ctypes.get_errno() == errno.EPERM else None,
    "io_uring_setup": raw(425, 1, None),
    "io_uring_enter": raw(426, 0, 0, 0, 0, None, 0),
    "openat2": raw(437, directory, here, None, 24),
    "open_tree": raw(428, directory, here, 0),
    "fsopen": raw(430, b"tmpfs", 0),
    "pidfd_getfd": raw(438, 0, 0, 0),
    "process_madvise": raw(440, 0, None, 0, 0, 0),
    "landlock": raw(444, None, 0, 1),
    "x32": raw(0x40000000 + 2, here, W, 0),
}
if legacy:
    calls |= {
        "old open": raw(2, here + b"/new", W, 0o644),
        "old creat": raw(85, here + b"/new", 0o644),
        "old rename": raw(82, here + b"/victim", here + b"/other"),
        "old mkdir": raw(83, here + b"/made", 0o755),
        "old rmdir": raw(84, here + b"/empty"),
        "old link": raw(86, here + b"/victim", here + b"/second"),
        "old unlink": raw(87, here + b"/victim"),
        "old symlink": raw(88, b"a", here + b"/link"),
        "old chmod": raw(90, here + b"/victim", 0o777),
        "old chown": raw(92, here + b"/victim", 65534, 65534),
        "old lchown": raw(94, here + b"/victim", 65534, 65534),
        "old mknod": raw(133, here + b"/node", 0o10644, 0),
        "old utime": raw(132, here + b"/victim", None),
        "old fork": raw(57),
        "old vfork-like clone": raw(56, 0x4100, None, None, None, 0),
        "old ptrace": raw(101, 16, os.getppid(), 0, 0),
        "process_vm_readv": raw(310, os.getppid(), None, 0, None, 0, 0),
        "process_vm_writev": raw(311, os.getppid(), None, 0, None, 0, 0),
        "bpf": raw(321, 0, None, 0),
        "userfaultfd": raw(323, 0),
        "perf_event_open": raw(298, None, 0, -1, -1, 0),
        "keyctl": raw(250, 0, -4, 0, 0, 0),
        "add_key": raw(248, b"user", b"a", b"b", 1, -4),
        "request_key": raw(249, b"user", b"a", None, -4),
        "shmget": raw(29, 0, 4096, 0o1600),
        "personality": raw(135, 0x40000),
        "seccomp": raw(317, 0, 0, None),
        "kcmp": raw(312, os.getpid(), os.getppid(), 0, 0, 0),
        "memfd by number": raw(319, b"x", 0),
        "mount": raw(165, b"a", here, b"tmpfs", 0, None),
        "unshare": raw(272, 0x10000000),
        "finit_module": raw(313, victim, b"", 0),
        "reboot": raw(169, 0, 0, 0, None),
        "open_by_handle_at": raw(304, directory, None, 0),
    }
refused = {name: attempt(call) for name, call in calls.items()}

def fetch():
    with socket.create_connection(("localhost", port)) as sock:
        sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        assert sock.recv(4)
started = []
thread = threading.Thread(target=lambda: started.append(1))
thread.start()
thread.join()
allowed = {"resolve and connect": attempt(fetch), "thread": 0 if started else -1,
           "read": attempt(lambda: open("/etc/passwd").close()), "list": attempt(lambda: os.listdir("/etc/ssl"))}
print(json.dumps([refused, allowed]))
"""


def test_inside_the_fetcher_only_the_network_can_be_reached(tmp_path: Path) -> None:
    import http.server
    import threading

    (tmp_path / "victim").write_bytes(b"whole")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path, tmp_path / "victim", tmp_path / "empty"):
        path.chmod(0o777)  # only the filter stands in between
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        done = subprocess.run(
            [sys.executable, "-c", INSIDE, str(ROOT), str(tmp_path), str(server.server_port), platform.machine()],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert done.returncode == 0, done.stderr
    refused, allowed = json.loads(done.stdout)
    assert {name: number for name, number in refused.items() if number != errno.EPERM} == {}
    assert {name: number for name, number in allowed.items() if number != 0} == {}
    assert (tmp_path / "victim").read_bytes() == b"whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "victim"]
