"""What the end of a session takes back, in steps that fit a record each."""

from __future__ import annotations

from trivium.cluster.model import ChunkId
from trivium.metadata import inodes, queue, volumes
from trivium.metadata.chunkrows import is_queued
from trivium.metadata.tx import Tx


def release(tx: Tx, session: int) -> bool:
    """One step. True: more is left, call again in a transaction of its own. The session's row goes after the last."""
    if inodes.release_session(tx, session):
        return True
    volumes.release_session(tx, session)
    return False


def give_up(tx: Tx, session: int, counters: tuple[int, ...]) -> None:
    """Chunks that the session will not name any more: those with a row but without references are queued at once."""
    for counter in counters:
        chunk = ChunkId(session, counter)
        if not is_queued(tx, chunk):
            queue.add_chunk(tx, chunk)
