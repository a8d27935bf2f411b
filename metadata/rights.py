"""What a peer with a key may say to the metadata server. Local peers (Unix socket, memory) have none: the socket's
mode and SO_PEERCRED have decided about them. That no other peer comes without one is the process's gate's to see to.

Invariants:
1. A session belongs to the key that said Hello; nobody else speaks for it.
2. What is not listed needs `admin`: a new message is decided before others may say it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from trivium.cluster.identity.access import ATTRIBUTE, Access, in_pools
from trivium.cluster.identity.refusals import NotAdmitted, Reason
from trivium.cluster.identity.statements import Right, Role
from trivium.cluster.transport.interface import Peer
from trivium.metadata import messages
from trivium.metadata.messages import MetadataError

READS: frozenset[type] = frozenset(
    {
        messages.Lookup,
        messages.GetAttr,
        messages.Stat,  # ends a mount's calls on names
        messages.ReadDir,
        messages.GetLayout,
        messages.ListXattrs,
        messages.StatFs,
        messages.GetBucket,
        messages.ListBuckets,
        messages.HeadObject,
        messages.ListObjects,
        messages.ListUploads,
        messages.GetUpload,
        messages.ListParts,
        messages.ListVolumes,
        messages.GetVolume,
        messages.NarrowChunks,
        messages.Locate,
        messages.Hold,  # an open handle protects what it reads
        messages.Release,
    }
)
WRITES: frozenset[type] = frozenset(
    {
        messages.Create,
        messages.Write,
        messages.Append,
        messages.Truncate,
        messages.Zero,
        messages.CloneRange,
        messages.SetAttr,
        messages.Link,
        messages.Unlink,
        messages.Rmdir,
        messages.Rename,
        messages.SetXattr,
        messages.RemoveXattr,
        messages.CreateBucket,
        messages.DeleteBucket,
        messages.SetBucketConfig,
        messages.PutObject,
        messages.DeleteObject,
        messages.CopyObject,
        messages.SetObjectMeta,
        messages.SetObjectAcl,
        messages.CreateUpload,
        messages.PutPart,
        messages.CopyPart,
        messages.CompleteUpload,
        messages.AbortUpload,
        messages.CreateVolume,
        messages.ResizeVolume,
        messages.RemoveVolume,
        messages.OpenVolume,
        messages.CloseVolume,
        messages.SetVolumeLog,
        messages.CommitSegment,
        messages.Checkpoint,
    }
)
"""The rest (credentials with their secrets, members, tokens, keys) is for `admin`: an S3 gateway has it too."""
NODE_COMMANDS = frozenset({"node_hello", "node_join"})
"""What a node says."""
READ_COMMANDS = frozenset({"status", "endpoints"})
"""What everybody may ask; every other command is an operator's."""


def access_of(peer: Peer) -> Access | None:
    """None: a local peer, or one of this process."""
    found = peer.attributes.get(ATTRIBUTE)
    return found if isinstance(found, Access) else None


def needed(said: Any) -> Right:
    """Of an operation or query."""
    kind = type(said)
    return Right.READ if kind in READS else Right.WRITE if kind in WRITES else Right.ADMIN


def check(
    peer: Peer,
    request: Any,
    *,
    pools: Iterable[int],
    owner: Callable[[int], bytes],
    pool_of: Callable[[int], int | None],
) -> None:
    """MetadataError EACCES (SESSION_ENDED) with the refusal's sentence. `pools`: those of the map; `owner`: member of a
    session (b"": local or unknown); `pool_of`: of an open group."""
    access = access_of(peer)
    if access is None:
        return
    try:
        if isinstance(request, messages.Hello):
            _check_hello(access, pools)
        else:
            _check(access, request, owner, pool_of)
    except NotAdmitted as error:
        ended = error.reason is Reason.SESSION_ENDED  # no matter of rights: who hears it begins anew
        raise MetadataError(messages.SESSION_ENDED if ended else "EACCES", str(error)) from None


def _check_hello(access: Access, pools: Iterable[int]) -> None:
    """A session is for somebody who may do something here."""
    access.require(Right.READ)
    allowed = access.holder().pools
    if not any(in_pools(pool, allowed) for pool in pools):
        listed = ", ".join(map(str, allowed)) or "none"
        raise NotAdmitted(Reason.OTHER_POOL, f"the key is for other pools than this cluster has (pool {listed})")


def _check(access: Access, request: Any, owner: Callable[[int], bytes], pool_of: Callable[[int], int | None]) -> None:
    certificate = access.speaker()
    session = getattr(request, "session", None)
    if session is not None:
        access.trust.check_session(session)
        if owner(session) != certificate.member:
            raise MetadataError(messages.SESSION_ENDED, "this session is not one of this key")
    match request:
        case messages.Call():
            for operation in request.operations:
                access.require(needed(operation))
            for chunk in request.chunks:
                pool = pool_of(chunk.group)
                if pool is not None:
                    access.allow_pool(pool)
        case messages.Ask():
            access.require(needed(request.query))
        case messages.Offer():
            access.require(Right.WRITE)
            access.allow_pool(request.pool)
        case messages.Admin():
            _check_command(access, request.command)
        case _:
            access.require(Right.READ)


def _check_command(access: Access, command: str) -> None:
    if command not in NODE_COMMANDS:
        access.require(Right.READ if command in READ_COMMANDS else Right.ADMIN)
    elif not access.speaker().has(Role.NODE, Role.METADATA):
        raise NotAdmitted(Reason.MISSING_RIGHT, f"{access.holder().name} is no node: only nodes bring drives")


def command_of(peer: Peer, request: messages.Admin) -> dict[str, Any]:
    """A command's arguments, if the peer may give it; a node's with its public key, or that it is of this host.
    MetadataError."""
    access = access_of(peer)
    if access is None:
        return request.arguments | ({"local": True} if request.command in NODE_COMMANDS else {})
    try:
        _check_command(access, request.command)
        if request.command not in NODE_COMMANDS:
            return request.arguments
        return request.arguments | {"public_key": access.holder().public, "local": False}
    except NotAdmitted as error:
        raise MetadataError("EACCES", str(error)) from None
