"""The identity of a running cluster: its keys on this host, who is in, what is signed.

    no keys --first start | trivium cluster init--> key file --rows--> in use --rotate--> two keys --finish--> in use

While two keys count, this process itself shows what the older one has signed (who has only the older one must believe
it), and certifies others with the newer one. Members hear of it with their heartbeats and ask for a new certificate.

    rows: none (starting) | those of a pool that is being formed (waitingrows) --> those of the database

Invariants:
1. A private key is durable before a row names its public half; so a crash leaves at most a key that nobody knows.
2. Rows decide which keys count. A key file that does not fit them signs nothing, and the pool serves on without.
3. A member gets a certificate only after its row is durable.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trivium.admin.waitingrows import Rows, WaitingRows
from trivium.cluster.clock import Clock
from trivium.cluster.errors import NotFound, Refused, Unavailable
from trivium.cluster.identity import certificates, keyfiles, messages, statements, tokens
from trivium.cluster.identity.access import Access
from trivium.cluster.identity.keyfiles import ClusterKey, ClusterKeys, Identity
from trivium.cluster.identity.keys import PrivateKey, PublicKey, member_id
from trivium.cluster.identity.member import Member
from trivium.cluster.identity.refusals import NotAdmitted, Reason
from trivium.cluster.identity.registry import Connections
from trivium.cluster.identity.statements import ALL_POOLS, FULL, Certificate, Grant, Handover, Revocations, Role
from trivium.cluster.identity.trust import GRANT_S, S, Trust
from trivium.cluster.transport.interface import Connection, Peer, Reply
from trivium.metadata import membermessages as said
from trivium.metadata.messages import MetadataError
from trivium.metadata.rights import access_of

if TYPE_CHECKING:
    from trivium.metadata.client import MetadataClient
    from trivium.metadata.server import MetadataServer

log = logging.getLogger(__name__)
NEWS_S = 1.0  # how old the clock in it may be
GUEST_S = 86_400
SERVER_ROLES = (Role.METADATA, Role.NODE)


def make_cluster_keys(cluster: bytes) -> ClusterKeys:
    key = PrivateKey.generate()
    return ClusterKeys(cluster, (ClusterKey(1, key, certificates.cluster_certificate(key, cluster, 1)),))


class LedRows:
    """The database's, through the leader's own session."""

    def __init__(self, client: MetadataClient) -> None:
        self._client = client

    async def call(self, operation: Any) -> Any:
        (value,) = await self._client.call(operation)
        return value

    async def ask(self, query: Any) -> Any:
        return await self._client.ask(query)


class ClusterIdentity:
    """`keys`: the folder of the key files."""

    def __init__(self, cluster: bytes, clock: Clock, keys: Path) -> None:
        self._cluster, self._clock, self._folder = cluster, clock, keys
        self._path = keys / "cluster"
        self._keys = ClusterKeys(self._cluster, ())
        self._rows: tuple[said.ClusterKeyInfo, ...] = ()
        self._book: Rows | None = None
        self._server: MetadataServer | None = None
        self.own: Identity | None = None
        self.member: Member | None = None  # the same over QUIC
        self.trust = Trust(self._cluster, self._clock)
        self.connections = Connections(self.trust)
        self.addresses: tuple[str, ...] = ()  # of the metadata server, for tokens: where QUIC listens
        self._news: tuple[object, float, bytes] | None = None
        self.on_change: Callable[[], None] = lambda: None  # tell the nodes now

    # ---- beginning ------------------------------------------------------------------------------------------

    def load(self) -> None:
        """What an earlier start has stored, so that this process can listen and call nodes before it has any rows."""
        try:
            own = keyfiles.load_identity(self._folder / "node")
        except NotFound:
            return
        if own.cluster == self._cluster and own.statement:
            self._be(own)

    async def wait(self) -> None:
        """The pool is being formed: keep members and tokens beside the keys until it has a database."""
        await self.begin(WaitingRows(self._folder / "waiting.db"))

    async def serve(self, client: MetadataClient, server: MetadataServer) -> None:
        """The database is there: go on with its rows."""
        self._server = server
        waiting = self._book
        rows = LedRows(client)
        await self.begin(rows)
        if waiting is None and (self._folder / "waiting.db").exists():
            waiting = WaitingRows(self._folder / "waiting.db")
        if isinstance(waiting, WaitingRows) and self._rows:
            try:
                await waiting.move(rows)
            except MetadataError as error:  # the next start tries again; the pool is needed more
                log.error("members and tokens from before the pool was formed are not all entered: %s", error)
            await self._load_revocations()
        server.issue_grant, server.issue_guest_grant = self.issue_grant, self.issue_guest_grant
        server.on_session_gone = lambda session: self._ended(session)
        self._told()

    async def begin(self, rows: Rows) -> None:
        """Load or make the keys, enter them into the rows. A pool whose key file is gone serves on without."""
        self._book = rows
        self._rows = await self._ask(said.ListClusterKeys())
        try:
            self._load_cluster_keys()
            await self._enter_first_key()
            self._load_anchors()
            await self._enrol()
        except (Refused, NotFound, MetadataError) as error:
            log.error("nobody can join, for the cluster's keys cannot be used: %s", error)
        await self._load_revocations()

    def _load_cluster_keys(self) -> None:
        try:
            self._keys = keyfiles.load_cluster(self._path)
        except NotFound:
            if self._rows:
                raise NotFound(f"{self._path} is gone: restore it from a backup") from None
            self._keys = make_cluster_keys(self._cluster)
            keyfiles.save_cluster(self._path, self._keys)
        if self._keys.cluster != self._cluster:
            self._keys = ClusterKeys(self._cluster, ())
            raise NotAdmitted(Reason.OTHER_CLUSTER, f"{self._path} belongs to another cluster")

    async def _enter_first_key(self) -> None:
        first = self._keys.keys[0]
        if not self._rows:
            await self._call(said.AddClusterKey(first.generation, first.key.public.raw))
            self._rows = await self._ask(said.ListClusterKeys())

    def _load_anchors(self) -> None:
        for row in self._rows:
            if not row.retired:
                self.trust.pin(row.generation, row.public_key)
        self.trust.retire_until(self._retired())
        self._signer()

    def _retired(self) -> int:
        return max((row.generation for row in self._rows if row.retired), default=0)

    def _signer(self) -> ClusterKey:
        """The newest key that the rows know; Refused when its private half is not here."""
        newest = self._rows[-1] if self._rows else None
        key = self._keys.of(newest.generation) if newest is not None else None
        if newest is None or key is None or key.key.public.raw != newest.public_key:
            raise NotAdmitted(
                Reason.UNKNOWN_KEY, f"{self._path} lacks the cluster's present key: restore it from a backup"
            )
        return key

    def _oldest_signer(self) -> ClusterKey:
        """The oldest key that counts and is here."""
        alive = (self._keys.of(row.generation) for row in self._rows if not row.retired)
        return next((key for key in alive if key is not None), None) or self._signer()

    async def _enrol(self) -> None:
        """This process's own key and certificate."""
        path = self._folder / "node"
        try:
            key = keyfiles.load_identity(path).key
        except NotFound:
            key = PrivateKey.generate()
        signer = self._oldest_signer()
        member = await self._enter(
            key.public.raw, socket.gethostname(), SERVER_ROLES, int(FULL), ALL_POOLS, signer.generation
        )
        joined = self._joined(member, signer)
        own = Identity(self._cluster, key, joined.statement, joined.anchors, joined.tls)
        keyfiles.save_identity(path, own)
        self._be(own)

    def _be(self, own: Identity) -> None:
        self.own = own
        if self.member is None:
            self.member = Member(own, self._clock, trust=self.trust, connections=self.connections)
        else:
            self.member.adopt(own)

    async def dial(self, rest: str, member: bytes = b"") -> Connection:
        """For a Dialer: to a node at HOST:PORT."""
        if self.member is None:
            raise Unavailable("this process has no key of the cluster yet")
        return await self.member.dial(rest, member)

    async def _enter(
        self, public: bytes, name: str, roles: tuple[str, ...], rights: int, pools: tuple[int, ...], generation: int
    ) -> said.MemberInfo:
        listed = tuple(str(role) for role in roles)
        found: said.MemberInfo = await self._call(
            said.EnrolMember(name, public, listed, rights, pools, generation)
        )
        return found

    async def _load_revocations(self) -> None:
        found = await self._ask(said.GetRevocations())
        self.trust.clock.heard(self._clock.wall_ns())
        self.connections.revoke(found.version, found.members)

    # ---- what is signed -------------------------------------------------------------------------------------

    def _joined(
        self, member: said.MemberInfo, signer: ClusterKey | None = None, expires_ns: int = 0
    ) -> messages.Joined:
        signer = signer or self._signer()
        roles = tuple(Role(role) for role in member.roles)
        certificate = Certificate(
            self._cluster,
            signer.generation,
            member.public_key,
            roles,
            member.name,
            member.rights,
            member.pools,
            member.issued,
            expires_ns,
        )
        listens = Role.NODE in roles or Role.METADATA in roles
        tls = b""
        if listens:
            tls = certificates.server_certificate(
                signer.key, self._cluster, signer.generation, member.public_key, roles
            )
        alive = {row.generation for row in self._rows if not row.retired}
        anchors = tuple((k.generation, k.certificate) for k in self._keys.keys if k.generation in alive)
        handovers = tuple(row.handover for row in self._rows if row.handover)
        return messages.Joined(
            self._cluster,
            statements.sign(signer.key, certificate),
            tls,
            anchors,
            handovers,
            self.addresses,
        )

    def issue_grant(self, access: Access, session: int) -> bytes:
        """For 60 s by this server's clock; renewed by each heartbeat."""
        held = access.holder()
        return self._grant(session, held.member, held.rights, held.pools)

    def issue_guest_grant(self, member: bytes, session: int) -> bytes:
        return self._grant(session, member, int(FULL), ALL_POOLS)

    def _grant(self, session: int, member: bytes, rights: int, pools: tuple[int, ...]) -> bytes:
        own, now = self.own, self._clock.wall_ns()
        if own is None:
            return b""
        self.trust.clock.heard(now)
        body = Grant(self._cluster, session, member, rights, pools, now, now + GRANT_S * S, own.statement)
        return statements.sign(own.key, body)

    def news(self) -> bytes:
        """What nodes are to hear with each heartbeat: who is revoked, what time it is, which keys count. Empty without
        a key to sign it with."""
        if self.own is None:
            return b""
        now_s, what = self._clock.boot_s(), (self.trust.version, self.trust.ended, self._rows)
        if self._news is None or self._news[0] != what or now_s - self._news[1] > NEWS_S:
            self._news = (what, now_s, messages.encode(self.learn_message()))
        return self._news[2]

    def learn_message(self) -> messages.Learn:
        assert self.own is not None, "a metadata server has a key"
        body = Revocations(
            self._cluster,
            self.trust.version,
            tuple(sorted(self.trust.revoked)),
            self.trust.ended,
            self._clock.wall_ns(),
            self.own.statement,
            self._retired(),
        )
        handovers = tuple(row.handover for row in self._rows if row.handover)
        return messages.Learn(statements.sign(self.own.key, body), handovers)

    def _ended(self, session: int) -> None:
        self.trust.clock.heard(self._clock.wall_ns())
        self.connections.end_sessions([session])

    # ---- messages of Service.IDENTITY -----------------------------------------------------------------------

    async def handle(self, peer: Peer, body: bytes) -> Reply:
        """Refused says why not."""
        try:
            request = messages.decode_request(body)
        except (msgspec.MsgspecError, ValueError):
            raise NotAdmitted(Reason.MALFORMED, "this is no message about identity") from None
        access = access_of(peer)
        match request:
            case messages.Join():
                return Reply(messages.encode(await self._join(request)))
            case messages.Reissue():
                return Reply(messages.encode(await self._reissue(_needed(access))))
            case messages.Introduce():
                if access is not None:
                    raise NotAdmitted(Reason.MISSING_RIGHT, "only processes of this host are guests")
                return Reply(messages.encode(self._guest(request.public_key)))
            case messages.Present():
                _needed(access).renew(request.grant)
            case messages.Learn():
                raise NotAdmitted(Reason.MISSING_RIGHT, "a metadata server learns from its own rows")
        return Reply(messages.encode(messages.Accepted()))

    async def _join(self, request: messages.Join) -> messages.Joined:
        signer = self._signer()
        operation = said.JoinCluster(
            tokens.token_id(request.secret),
            tokens.digest(request.secret),
            request.public_key,
            request.name,
            signer.generation,
        )
        try:
            member = await self._call(operation)
        except MetadataError as error:
            raise NotAdmitted(Reason.TOKEN, error.text) from None
        log.info("%s has joined as %s (member %s)", member.name, " ".join(member.roles), member.id.hex()[:8])
        return self._joined(member)

    def _guest(self, public: bytes) -> messages.Joined:
        """A process of this host that the socket's mode has let in: what it may do here it may do at nodes."""
        now, id = self._clock.wall_ns(), member_id(PublicKey.load(public).raw)
        generation, roles = self._signer().generation, (Role.GUEST.value,)
        guest = said.MemberInfo(id, "a process of this host", public, roles, int(FULL), ALL_POOLS, now, generation)
        return self._joined(guest, expires_ns=now + GUEST_S * S)

    async def _reissue(self, access: Access) -> messages.Joined:
        held = access.holder()
        rows = {row.id: row for row in await self._ask(said.ListMembers())}
        row = rows.get(held.member)
        if row is None or row.revoked:
            raise NotAdmitted(Reason.UNKNOWN_KEY, "the key has no row; join again with a token")
        newest = self._signer().generation
        return self._joined(await self._enter(row.public_key, row.name, row.roles, row.rights, row.pools, newest))

    # ---- operator's commands --------------------------------------------------------------------------------

    async def show(self, arguments: dict[str, Any]) -> Any:
        rows = self._rows
        return {
            "cluster": self._cluster.hex(),
            "keys": [{"generation": row.generation, "created": row.created, "retired": row.retired} for row in rows],
            "fingerprint": self._signer().key.public.fingerprint.hex(),
        }

    async def token_create(self, arguments: dict[str, Any]) -> Any:
        token = tokens.make(self._oldest_signer().key.public.fingerprint, self.addresses)
        role, rights = Role(arguments["role"]), int(arguments["rights"])
        if role == Role.NODE:
            rights = 0  # it acts by its role and gives no commands
        roles = (role.value,)
        pools = tuple(arguments["pools"]) or ALL_POOLS
        lasts_s = int(arguments["lasts_s"])
        name = str(arguments.get("name", ""))
        await self._call(said.AddToken(token.id, tokens.digest(token.secret), roles, rights, pools, lasts_s, name))
        return {"id": token.id.hex(), "token": token.text()}

    async def token_list(self, arguments: dict[str, Any]) -> Any:
        return [
            {
                "id": row.id.hex(),
                "roles": row.roles,
                "name": row.name,
                "rights": row.rights,
                "pools": row.pools,
                "expires": row.expires,
                "used": bool(row.used_by),
            }
            for row in await self._ask(said.ListTokens())
        ]

    async def token_remove(self, arguments: dict[str, Any]) -> Any:
        await self._call(said.RemoveToken(bytes.fromhex(arguments["id"])))

    async def members(self, arguments: dict[str, Any]) -> Any:
        return [
            {
                "id": row.id.hex(),
                "name": row.name,
                "roles": row.roles,
                "rights": row.rights,
                "pools": row.pools,
                "issued": row.issued,
                "generation": row.generation,
                "revoked": row.revoked,
            }
            for row in await self._ask(said.ListMembers())
        ]

    async def revoke(self, arguments: dict[str, Any]) -> Any:
        """The row first, then connections, then sessions."""
        wanted = arguments["member"]
        rows = await self._ask(said.ListMembers())
        found = [row for row in rows if row.name == wanted or (len(wanted) >= 4 and row.id.hex().startswith(wanted))]
        if len(found) != 1:
            raise MetadataError(
                "ENOENT" if not found else "EINVAL",
                f"{len(found) or 'no'} member{'s' if found else ''} called {wanted}; `trivium cluster members` has ids",
            )
        member = found[0]
        if self.own is not None and member.public_key == self.own.key.public.raw:
            raise MetadataError("EPERM", "this is the metadata server's own key: it cannot revoke itself")
        version = await self._call(said.RevokeMember(member.id))
        closed = self.connections.revoke(version, [member.id])
        self.on_change()
        server, sessions = self._server, list[int]()
        if server is not None:
            sessions = [session.id for session in server.sessions.all() if session.member == member.id]
            for session in sessions:
                await server.end_session(session, f"the key of {member.name} was revoked")
        return {"name": member.name, "version": version, "closed": closed, "sessions": len(sessions)}

    async def rotate(self, arguments: dict[str, Any]) -> Any:
        """A new key, handed over by the old one; both count until `finish`."""
        if arguments.get("finish"):
            return await self._finish(bool(arguments.get("force")))
        old = self._signer()
        if sum(not row.retired for row in self._rows) > 1:
            raise MetadataError("EBUSY", "a rotation is under way: end it first (trivium cluster rotate --finish)")
        new = self._keys.of(old.generation + 1) or self._make_next(old.generation + 1)
        handover = statements.sign(old.key, Handover(self._cluster, new.generation, new.key.public.raw))
        await self._call(said.AddClusterKey(new.generation, new.key.public.raw, handover))
        self._rows = await self._ask(said.ListClusterKeys())
        self.trust.hand_over(handover)
        await self._enrol()
        self._told()
        return {"generation": new.generation, "fingerprint": new.key.public.fingerprint.hex()}

    def _make_next(self, generation: int) -> ClusterKey:
        key = PrivateKey.generate()
        made = ClusterKey(generation, key, certificates.cluster_certificate(key, self._cluster, generation))
        self._keys = ClusterKeys(self._cluster, (*self._keys.keys, made))
        keyfiles.save_cluster(self._path, self._keys)
        return made

    async def _finish(self, force: bool) -> Any:
        newest = self._signer()
        if sum(not row.retired for row in self._rows) < 2:
            raise MetadataError("EINVAL", "no rotation is under way; trivium cluster rotate begins one")
        if self.own is not None:
            await self._enter(
                self.own.key.public.raw, socket.gethostname(), SERVER_ROLES, int(FULL), ALL_POOLS, newest.generation
            )
        await self._call(said.RetireClusterKey(newest.generation - 1, force))
        self._rows = await self._ask(said.ListClusterKeys())
        self.trust.retire_until(self._retired())
        self._keys = ClusterKeys(self._cluster, (newest,))
        keyfiles.save_cluster(self._path, self._keys)
        await self._enrol()
        self._told()
        return {"generation": newest.generation, "fingerprint": newest.key.public.fingerprint.hex()}

    def _told(self) -> None:
        """The keys have changed: nodes hear of it now, clients with their next heartbeat."""
        if self._server is not None:
            self._server.key_generation = max((row.generation for row in self._rows), default=0)
            self._server.key_retired = self._retired()
        self.on_change()

    def commands(self) -> dict[str, Any]:
        return {
            "cluster_show": self.show,
            "cluster_token_create": self.token_create,
            "cluster_token_list": self.token_list,
            "cluster_token_remove": self.token_remove,
            "cluster_members": self.members,
            "cluster_revoke": self.revoke,
            "cluster_rotate": self.rotate,
        }

    # ---- inside ---------------------------------------------------------------------------------------------

    async def _call(self, operation: Any) -> Any:
        return await self._where().call(operation)

    async def _ask(self, query: Any) -> Any:
        return await self._where().ask(query)

    def _where(self) -> Rows:
        if self._book is None:
            raise Unavailable("the metadata server is starting")
        return self._book


def _needed(access: Access | None) -> Access:
    if access is None:
        raise NotAdmitted(Reason.UNKNOWN_KEY, "only a connection with a key may ask this")
    return access
