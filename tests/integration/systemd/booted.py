"""Boots a real systemd inside User Mode Linux, on a root directory of its own.

`boot` is the job: it puts a root file system together in memory, with this machine's programs in
it, and runs systemd in a process id namespace until it powers off. `look_around` runs inside that,
as a service after all others, and ends in the poweroff.

Invariants:
1. Of this machine's files, the booted system sees /usr, the checkout, and the result directory; it
   can change only the last.
"""

import ctypes
import json
import os
import pwd
import select
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

ROOT = Path("/mnt/root")
# Where units see nothing, and scripts/install-systemd refuses to let them look for programs.
HOMES = ("/home/", "/root/", "/run/user/")
_CLONE_NEWNS = 0x00020000
_CLONE_NEWPID = 0x20000000
_SPARE = "nbd+unix:///a?socket=/run/thinpoold/spare/nbd.sock"

_BUILD = """
mkdir "$root"; mount -t tmpfs -o mode=755 root "$root"; cd "$root"
mkdir -p usr etc var/lib var/log var/tmp run tmp proc sys dev old result srv ".$checkout"
for name in bin sbin lib lib64; do ln -s usr/$name $name; done
mount --bind /usr usr
mount --bind "$checkout" ".$checkout"
mount --bind "$result" result
mount -t sysfs sys sys
mount -t devtmpfs dev dev; mkdir -p dev/pts dev/shm
mount -t tmpfs -o mode=755 run run
mount -t tmpfs -o mode=1777 tmp tmp
chmod 1777 var/tmp
for file in alternatives group ld.so.cache nsswitch.conf passwd shadow; do
    cp -a /etc/$file etc/
done
cp -a "$files/." .
mount --bind usr-local usr/local
"""


def boot(files: str, result: str, checkout: str) -> None:
    """Boots with the files of a directory laid over the root, and `result` shared."""
    environment = {**os.environ, "root": str(ROOT), "checkout": checkout, "result": result}
    build = ["/bin/sh", "-euc", _BUILD]
    subprocess.run(build, env={**environment, "files": files}, check=True)
    keeper = os.fork()
    if keeper == 0:
        try:
            _namespaced()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.waitpid(keeper, 0)
    # systemd has made the last file system it could not unmount read-only: the one below all.
    subprocess.run(["/bin/mount", "-o", "remount,rw", "/"], check=True)


def _namespaced() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS | _CLONE_NEWPID) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    first = os.fork()
    if first:
        os.waitpid(first, 0)
        os._exit(0)
    os.chdir(ROOT)
    commands = "mount --make-rprivate /; mount -t proc proc proc; pivot_root . old"
    subprocess.run(["/bin/sh", "-euc", commands], check=True)
    os.chroot(".")
    os.chdir("/")
    subprocess.run(["umount", "-l", "/old"], check=True)
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    os.execve(
        "/lib/systemd/systemd",
        ["systemd", "--system"],
        {"PATH": path, "TERM": "dumb", "SYSTEMD_COLORS": "0"},
    )


def look_around() -> None:
    """Inside: looks at what was booted and uses it, reports, and powers off."""
    report: dict[str, Any] = {}
    try:
        _mounted(report)
        _activated(report)
        if not f"{Path.cwd()}/".startswith(HOMES):
            _installed(report)
    except BaseException:
        report["error"] = traceback.format_exc()
    report["journal"] = _run("journalctl", "--no-pager", "-o", "cat", "-u", "thinpool*")
    units = _run("systemctl", "--no-pager", "--no-legend", "--plain", "--failed", "list-units")
    report["failed"] = [line.split()[0] for line in units.splitlines()]
    Path("/result/report").write_text(json.dumps(report))
    _run("systemctl", "poweroff", "--no-block")


def _mounted(report: dict[str, Any]) -> None:
    """The pool that is a service, with a file system that is mounted."""
    report["mount"] = _run("findmnt", "-no", "FSTYPE", "/srv").strip()
    report["daemon"] = _facts("thinpoold@pool.service")
    pid = _show("thinpoold@pool.service", "MainPID")
    status = Path(f"/proc/{pid}/status").read_text()
    process = dict(line.split(":\t", 1) for line in status.splitlines())
    report["process"] = {key: process[key] for key in ("CapEff", "NoNewPrivs", "Seccomp")}
    report["user"] = pwd.getpwuid(int(process["Uid"].split()[0])).pw_name
    # The file system stays mounted, whatever becomes of the daemon, and goes on.
    read = [_write_and_read("booted")]
    _run("systemctl", "restart", "thinpoold@pool.service")
    read.append(_write_and_read("restarted"))
    _run("systemctl", "kill", "--signal=KILL", "thinpoold@pool.service")
    report["read"] = [*read, _write_and_read("killed")]


def _write_and_read(text: str) -> str:
    """Writes through to the pool, and reads back from there."""
    with open("/srv/written", "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path("/proc/sys/vm/drop_caches").write_text("3")
    return Path("/srv/written").read_text()


def _activated(report: dict[str, Any]) -> None:
    """The pool that is a socket only, whose daemon meets with everything that daemons meet with."""
    unit = "thinpoold@spare.service"
    report["before"] = _show(unit, "ActiveState")
    # Attaching is what starts it the first time.
    thinpool = (str(Path(sys.executable).with_name("thinpool")), "-p", "/var/lib/thinpoold/spare")
    report["device"] = _run(*thinpool, "attach", "a").strip()
    Path(report["device"]).write_bytes(b"attached" * 512)
    listed = json.loads(_run(*thinpool, "list", "--json"))["volumes"]
    report["opened_by"] = [listed[0]["opened_by"][0][key] for key in ("command", "user")]
    _run(*thinpool, "detach", "a")
    report["size"] = _run("nbdinfo", "--size", _SPARE).strip()
    report["activated"] = _facts(unit)
    _run("systemctl", "restart", unit)
    report["restarted"] = _facts(unit)
    for name, number in (("killed", signal.SIGKILL), ("hung", signal.SIGSTOP)):
        process = os.pidfd_open(int(_show(unit, "MainPID")))
        signal.pidfd_send_signal(process, number)
        select.select([process], [], [])
        # Nobody but a client calls for the next start.
        assert _run("nbdinfo", "--size", _SPARE).strip() == report["size"]
        report[name] = _facts(unit)
    _run("systemctl", "stop", "thinpoold@spare.socket")
    report["stopped"] = _facts(unit)


def _installed(report: dict[str, Any]) -> None:
    """Units are put right, and not taken away, under the systemd that runs them."""
    script = str(Path.cwd() / "scripts/install-systemd")
    words = (script, "--bindir", str(Path(sys.executable).parent))
    target = Path("/usr/local/lib/systemd/system/thinpoold.target")
    target.write_text("[Unit]\nDescription=spoilt\n")
    report["mended"] = _run(*words).split()
    # As systemd has it now, and not only the file.
    report["description"] = _show(target.name, "Description")
    report["again"] = _run(*words)
    done = subprocess.run([script, "--remove"], capture_output=True, text=True, check=False)
    report["kept"] = (done.returncode, done.stderr, target.exists())


def _facts(unit: str) -> dict[str, str]:
    fields = ("ActiveState", "StatusText", "NRestarts", "Result")
    return {field: _show(unit, field) for field in fields}


def _show(unit: str, field: str) -> str:
    return _run("systemctl", "show", "--value", "-p", field, unit).strip()


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.returncode}: {done.stderr}")
    return done.stdout


if __name__ == "__main__":
    look_around()
