"""What is missing on this machine, each with the command that installs it. Nothing is changed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what it is for, whether it holds, what was seen, and what to do when it does not."""

    name: str
    needed_for: str
    ok: bool
    seen: str
    remedy: str = ""


def _command(name: str, needed_for: str, package: str) -> Finding:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    return Finding(name, needed_for, path is not None, path or "not found", f"apt install {package}")


def _module(name: str, needed_for: str, remedy: str) -> Finding:
    found = importlib.util.find_spec(name) is not None
    return Finding(f"python: {name}", needed_for, found, "importable" if found else "not importable", remedy)


def check_python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", "everything", sys.version_info >= (3, 11), version, "install Python 3.11 or newer")


def check_fuse_device() -> Finding:
    ok = os.access("/dev/fuse", os.R_OK | os.W_OK)
    seen = "usable" if ok else ("no permission" if os.path.exists("/dev/fuse") else "missing")
    remedy = "modprobe fuse (in a container: --device /dev/fuse --cap-add SYS_ADMIN)"
    if seen == "no permission":
        remedy = "mount as root, or let everybody in: chmod 666 /dev/fuse"
    return Finding("/dev/fuse", "mount", ok, seen, remedy)


def check_codec() -> Finding:
    try:
        from pyeclib.ec_iface import ECDriver

        driver = ECDriver(k=4, m=2, ec_type="isa_l_rs_cauchy")
        ok = driver.decode(driver.encode(b"trivium" * 100)[2:]) == b"trivium" * 100
        return Finding("erasure codec", "everything", ok, "isa_l_rs_cauchy", "pip install --force-reinstall pyeclib")
    except Exception as error:
        return Finding("erasure codec", "everything", False, str(error), "pip install --force-reinstall pyeclib")


def check_sqlite() -> Finding:
    import apsw

    ok = hasattr(apsw, "Session") and "ENABLE_SESSION" in apsw.compile_options
    return Finding("sqlite sessions", "metadata", ok, apsw.sqlite_lib_version(), "pip install --force-reinstall apsw")


def check_nbdkit_python() -> Finding:
    """nbdkit embeds one Python version; the environment that it serves from must be of that version."""
    needed_for, remedy = "nbd", "apt install nbdkit nbdkit-plugin-python"
    nbdkit = shutil.which("nbdkit")
    if nbdkit is None:
        return Finding("nbdkit python plugin", needed_for, False, "nbdkit not found", remedy)
    dump = subprocess.run([nbdkit, "--dump-plugin", "python"], capture_output=True, text=True, check=False)
    fields = dict(line.split("=", 1) for line in dump.stdout.splitlines() if "=" in line)
    embedded = fields.get("python_version", "")
    if not embedded:
        return Finding("nbdkit python plugin", needed_for, False, dump.stderr.strip() or "does not load", remedy)
    ours = ".".join(map(str, sys.version_info[:2]))
    ok = embedded.startswith(ours + ".")
    return Finding(
        "nbdkit python plugin",
        needed_for,
        ok,
        f"embeds {embedded}, this is {ours}",
        f"run trivium in an environment of Python {embedded}",
    )


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python,
    check_codec,
    check_sqlite,
    check_fuse_device,
    lambda: _command("fusermount3", "mount", "fuse3"),
    lambda: _module(
        "pyfuse3", "mount", "apt install gcc pkg-config libfuse3-dev python3-dev && pip install 'trivium[fs]'"
    ),
    check_nbdkit_python,
    lambda: _command("nbdinfo", "nbd tools", "libnbd-bin"),
)


def examine() -> list[Finding]:
    return [check() for check in CHECKS]
