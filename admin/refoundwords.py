"""What a rebuild from shards will do, has found, and cannot know: in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from trivium.admin.refoundbuild import Built
from trivium.admin.refoundmap import Seen

WILL_DO = (
    "The metadata of {path} will be made anew from the shards on {drives} drives: a new database, a new log and a new "
    "root take the place of the old ones, which are kept in replaced-<id>/ on each drive and in the data directory. "
    "Drives that are not given now count as down. What no metadata name is found in /lost+found of the mount."
)
UNKNOWN = (
    "Shards do not tell names, modes, owners, times, attributes, ETags, buckets, accounts or members, nor which bytes "
    "were deleted or overwritten since (some may be back); contents of up to 16 KiB that lay in the metadata are on no "
    "drive as shards; each S3 body, and each part of an upload, is a file of its own."
)
LOSSES_SHOWN = 200


def found(built: Built, seen: Seen) -> Iterator[str]:
    """The report, a line each."""
    yield from built.notes
    chunks = built.chunks
    yield (
        f"drives: {len(seen.drives)} read; chunks: {chunks.whole} whole, {chunks.short} lack shards, "
        f"{len(chunks.lost)} have fewer than are needed to read them"
    )
    if built.restored_seq:
        end = "their end" if built.whole_log else "there"
        yield f"names: dump and log are read up to record {built.restored_seq}, {end}; what they name keeps its name"
    else:
        yield "names: no dump and no log can be read, so no name is known"
    yield _files(built)
    for volume in built.volumes:
        size = f"{volume.size} bytes"
        size += "" if volume.sized else " (where its last write ends; trivium volume resize, if it was larger)"
        yield f"volume {volume.name}: {size}"
        for note in volume.notes:
            yield f"volume {volume.name}: {note}"
    yield from _losses(built)
    for text in built.findings:
        yield f"fsck will say: {text}"
    if built.credential is not None:
        yield f"accounts are lost: the root credential is new (access key {built.credential.access_key})"
    if built.members_lost:
        yield "members and revoked keys are lost: the cluster gets a new key, and who comes from elsewhere joins again"
    yield UNKNOWN


def _files(built: Built) -> str:
    files = built.files
    kinds = {
        "inode": "written through a mount", "object": "S3 bodies or parts", "content": "moved by the compactor",
        "chunk": "of no known owner",
    }  # fmt: skip
    parts = [f"{count} {kinds.get(kind, kind)}" for kind, count in sorted(files.counts.items())]
    text = f"lost+found: {files.total} files" + (f" ({', '.join(parts)})" if parts else "") + f", {files.bytes} bytes"
    if files.doubtful:
        text += f"; {files.doubtful} of them doubtful: who came later is not known, both are kept"
    return text


def _losses(built: Built) -> Iterator[str]:
    for loss in built.losses[:LOSSES_SHOWN]:
        ranges = ", ".join(f"{offset} to {offset + length - 1}" for offset, length in loss.ranges)
        yield f"lost: {loss.kind} {loss.name}" + (f": bytes in {ranges}" if ranges else "")
    if len(built.losses) > LOSSES_SHOWN:
        yield f"lost: {len(built.losses) - LOSSES_SHOWN} more; trivium fsck --lost names them all"
