"""Block work by fio: over NBD, and on a local file (O_DIRECT)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

SECONDS = 4
SIZE = "512M"


def fio(target: list[str], *arguments: str, bandwidth: bool = False, timed: bool = True) -> float | None:
    command = ["fio", "--name=x", *target, f"--size={SIZE}", "--output-format=json", *arguments]
    if timed:
        command += ["--time_based", f"--runtime={SECONDS}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or "{" not in done.stdout:
        return None
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    if bandwidth:
        return round((job["read"]["bw_bytes"] + job["write"]["bw_bytes"]) / 1e6, 1)
    return round(job["read"]["iops"] + job["write"]["iops"], 1)


def measure(target: list[str]) -> dict[str, float | None]:
    out: dict[str, float | None] = {}
    out["write_1m_MBs"] = fio(
        target, "--rw=write", "--bs=1M", "--iodepth=4", "--end_fsync=1", bandwidth=True, timed=False
    )
    out["read_1m_MBs"] = fio(target, "--rw=read", "--bs=1M", "--iodepth=4", bandwidth=True, timed=False)
    for depth in (1, 16):
        out[f"randread_4k_qd{depth}_s"] = fio(target, "--rw=randread", "--bs=4k", f"--iodepth={depth}")
        out[f"randwrite_4k_qd{depth}_s"] = fio(
            target, "--rw=randwrite", "--bs=4k", f"--iodepth={depth}", "--end_fsync=1"
        )
    out["randwrite_4k_flush_qd1_s"] = fio(target, "--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1")
    return out


def nbd_target(socket: Path, export: str) -> list[str]:
    return ["--ioengine=nbd", f"--uri=nbd+unix:///{export}?socket={socket}"]


def local_target(file: Path) -> list[str]:
    return ["--ioengine=libaio", "--direct=1", f"--filename={file}"]
