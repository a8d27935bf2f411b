"""The registry: which function executes which operation (on the writer) and answers which query (on a reader)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trivium.cluster.model import Placed
from trivium.metadata import (
    accounts,
    attributes,
    buckets,
    chunkrows,
    content,
    directories,
    inodes,
    listing,
    members,
    messages,
    objects,
    renaming,
    space,
    uploads,
    volumes,
)

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader, Tx

SESSION_END_INODES = 500  # released in the transaction that ends a session


def locate(reader: Reader, query: messages.Locate) -> tuple[Placed | None, ...]:
    return chunkrows.locate(reader, query.chunks)


OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    messages.Create: directories.create,
    messages.Stat: attributes.get_attr,
    messages.Link: directories.link,
    messages.Unlink: directories.unlink,
    messages.Rmdir: directories.rmdir,
    messages.Rename: renaming.rename,
    messages.SetAttr: attributes.set_attr,
    messages.SetXattr: attributes.set_xattr,
    messages.RemoveXattr: attributes.remove_xattr,
    messages.Hold: attributes.hold,
    messages.Release: attributes.release,
    messages.Write: content.write,
    messages.Append: content.append,
    messages.Truncate: content.truncate,
    messages.Zero: content.zero,
    messages.CloneRange: content.clone_range,
    messages.CreateBucket: buckets.create_bucket,
    messages.DeleteBucket: buckets.delete_bucket,
    messages.SetBucketConfig: buckets.set_bucket_config,
    messages.PutObject: objects.put_object,
    messages.DeleteObject: objects.delete_object,
    messages.CopyObject: objects.copy_object,
    messages.SetObjectMeta: objects.set_object_meta,
    messages.SetObjectAcl: objects.set_object_acl,
    messages.CreateUpload: uploads.create_upload,
    messages.PutPart: uploads.put_part,
    messages.CopyPart: uploads.copy_part,
    messages.CompleteUpload: uploads.complete_upload,
    messages.AbortUpload: uploads.abort_upload,
    messages.SetCredential: accounts.set_credential,
    messages.CreateVolume: volumes.create_volume,
    messages.ResizeVolume: volumes.resize_volume,
    messages.RemoveVolume: volumes.remove_volume,
    messages.OpenVolume: volumes.open_volume,
    messages.CloseVolume: volumes.close_volume,
    messages.SetVolumeLog: volumes.set_volume_log,
    messages.CommitSegment: volumes.commit_segment,
    messages.Checkpoint: volumes.checkpoint,
    **members.MEMBER_OPERATIONS,
}

QUERIES: dict[type, Callable[[Any, Any], Any]] = {
    messages.Lookup: directories.lookup,
    messages.GetAttr: attributes.get_attr,
    messages.ReadDir: directories.readdir,
    messages.GetLayout: content.layout,
    messages.ListXattrs: attributes.list_xattrs,
    messages.StatFs: space.statfs,
    messages.GetBucket: buckets.get_bucket,
    messages.ListBuckets: buckets.list_buckets,
    messages.HeadObject: objects.head_object,
    messages.ListObjects: listing.list_objects,
    messages.ListUploads: uploads.list_uploads,
    messages.GetUpload: uploads.get_upload,
    messages.ListParts: uploads.list_parts,
    messages.GetCredential: accounts.get_credential,
    messages.UnknownUsers: accounts.unknown_users,
    messages.ListVolumes: volumes.list_volumes,
    messages.GetVolume: volumes.get_volume,
    messages.NarrowChunks: lambda reader, query: (),  # the leader knows when it is time
    messages.Locate: locate,
    **members.MEMBER_QUERIES,
}


def end_session(tx: Tx, session: int) -> None:
    """What a session held goes with it (MetadataServer's `on_session_end`). Unlinked inodes that nobody holds now and
    that do not fit into this transaction go in steps of the collector."""
    volumes.release_session(tx, session)
    inodes.release_session(tx, session, SESSION_END_INODES)
