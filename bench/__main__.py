"""python -m bench [files|blocks|objects|codec|quic ...]: one JSON object on standard output, progress on the other."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from bench import blocks, codec, files, objects, quic
from bench.pool import bench_pool


def ratios(ours: dict[str, float | None], local: dict[str, float | None]) -> dict[str, float | None]:
    pairs = {name: (ours.get(name), local.get(name)) for name in ours}
    return {name: round(a / b, 3) if a and b else None for name, (a, b) in pairs.items()}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(wanted: list[str]) -> None:
    parts = wanted or ["codec", "quic", "files", "blocks", "objects"]
    out: dict[str, object] = {"cold": os.access("/proc/sys/vm/drop_caches", os.W_OK), "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory(prefix="trivium-bench-", dir=os.environ.get("TRIVIUM_BENCH_DIR")) as directory:
        work = Path(directory)
        local = work / "local"
        local.mkdir()
        if "codec" in parts:
            say("codec and disk alone")
            out["alone"] = codec.measure(local)
        if "quic" in parts:
            say("QUIC and TCP between two processes")
            out["quic"] = quic.measure()
        if not {"files", "blocks", "objects"} & set(parts):
            print(json.dumps(out, indent=1))
            return
        with bench_pool(work) as pool:
            if "files" in parts:
                say("files: local disk, then the mount")
                base, ours = files.measure(local), files.measure(pool.mountpoint)
                out["files"] = {"mount": ours, "local": base, "ratio": ratios(dict(ours), dict(base))}
            if "blocks" in parts:
                say("blocks: local file, then NBD")
                disk = blocks.measure(blocks.local_target(local / "fio"))
                nbd = blocks.measure(blocks.nbd_target(pool.nbd_socket, "bench"))
                out["blocks"] = {"nbd": nbd, "local": disk, "ratio": ratios(nbd, disk)}
            if "objects" in parts:
                say("objects: S3")
                out["objects"] = objects.measure(work, pool.endpoint, pool.access_key, pool.secret_key)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
