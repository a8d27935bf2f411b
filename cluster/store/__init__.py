"""One drive directory: shards, log segments, the root file, and the drive's own verdict about itself.

    DIR/root (locked for life)  chunks/<session>/<counter >> 12>/<counter>.<index>  log/<segment>.{open,sealed}
        holder  ballast  quarantine/  tmp/ (emptied at start)

Invariants:
1. What a call has answered is durable: its bytes were synced, then its name, in that order.
2. A call that raised may have left a file in tmp/ or bytes behind a log's end, never a changed answer.
3. Files are reached from directory descriptors held since `open`; a put never makes a drive's directory again.
4. An fsync error, or a root file that is not the locked one, ends the drive's use for ever (Health); a full disk
   fails only the write that met it.
"""

from trivium.cluster.store.drive import Store
from trivium.cluster.store.health import Health

__all__ = ["Health", "Store"]
