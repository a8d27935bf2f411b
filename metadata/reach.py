"""How a process reaches a pool: by the Unix socket of a data directory, or by QUIC with a key.

    Reach (what --connect and --identity say, a value) --Way--> connections to metadata server and nodes

    a directory with run/trivium.sock                 the Unix socket (this host)
    a directory with keys/client or keys/node         QUIC, to the addresses that the key file has
    HOST:PORT[,HOST:PORT]                             QUIC, with the key file of the directory, or --identity

A process that came by the socket and needs nodes on other hosts introduces itself there with a key of its own making.

Invariants
1. Local first: sockets are used where they are there. With TRIVIUM_TRANSPORT=quic, nodes' sockets are not (to see that
   the network carries everything, and in tests).
2. A client shows its newest grant on each connection to a node, at the latest half way to its end.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from trivium.cluster.clock import Clock
from trivium.cluster.errors import NotFound, Refused, Unavailable
from trivium.cluster.identity import joining, keyfiles, messages, statements
from trivium.cluster.identity.keys import PrivateKey
from trivium.cluster.identity.member import Member
from trivium.cluster.transport.dial import Dialer
from trivium.cluster.transport.interface import Connection
from trivium.cluster.transport.quic import QuicAddress
from trivium.cluster.transport.quic.address import SCHEME
from trivium.cluster.transport.unix import UnixConnection
from trivium.cluster.wire import Service

log = logging.getLogger(__name__)

TRANSPORT = "TRIVIUM_TRANSPORT"  # environment variable; "quic": no node's socket, not even on this host
KEY_FILES = ("client", "node")
PRESENT_S = 15.0  # a grant lasts 60 s
GRANT_WAIT_S = 5.0
TLS_LATER_S = 30.0
GUEST_RENEWAL_S = 6 * 3600.0  # a guest's certificate lasts a day
_ADDRESS = re.compile(r"(quic:)?(\[[0-9A-Fa-f:.]+\]|[^:/\[\]\s]+):\d{1,5}")


@dataclass(frozen=True, slots=True)
class Reach:
    """`directory`: of the pool on this host, else of this client: its key, its logs. The rest overrides what it has."""

    directory: Path
    addresses: tuple[str, ...] = ()  # quic:HOST:PORT of metadata servers
    identity: Path | None = None

    @classmethod
    def parse(cls, text: str, identity: str, default: Path) -> Reach:
        """What --connect and --identity say. Refused."""
        key = Path(os.path.abspath(identity)) if identity else None
        parts = [part.strip() for part in text.split(",")] if text else []
        if parts and all(_ADDRESS.fullmatch(part) for part in parts) and not os.path.isdir(text):
            addresses = tuple(str(QuicAddress.parse("quic:" + part.removeprefix("quic:"))) for part in parts)
            return cls(default, addresses, key)
        if text and not os.path.isdir(text) and (key is not None or os.path.exists(text)):
            raise Refused(f"{text} is no directory, and the address of a metadata server is HOST:PORT")
        return cls(Path(os.path.abspath(text)) if text else default, (), key)

    @property
    def socket(self) -> Path:
        return self.directory / "run" / "trivium.sock"

    @property
    def local(self) -> bool:
        """By the Unix socket, whether or not somebody listens there now."""
        if self.addresses or self.identity is not None:
            return False
        return self.socket.exists() or self.key_file is None

    @property
    def key_file(self) -> Path | None:
        if self.identity is not None:
            return self.identity
        names = KEY_FILES[:1] if (self.directory / "metadata").exists() else KEY_FILES  # a server's is not for commands
        return next((path for name in names if (path := self.directory / "keys" / name).exists()), None)

    @property
    def there(self) -> bool:
        """Something can be tried."""
        return self.socket.exists() if self.local else self.key_file is not None

    @property
    def arguments(self) -> list[str]:
        """The same for another process's command line."""
        where = ",".join(self.addresses) if self.addresses else str(self.directory)
        return ["--connect", where, *(["--identity", str(self.identity)] if self.identity is not None else [])]

    def __str__(self) -> str:
        return ", ".join(self.addresses) if self.addresses else str(self.directory)


def quic_only() -> bool:
    return os.environ.get(TRANSPORT, "") == "quic"


class Way:
    """A process's connections into a pool. `be_guest(member)` asks for grants; `granted` hears of them."""

    def __init__(self, reach: Reach, clock: Clock, member: Member | None = None) -> None:
        """`member`: who this process is already, instead of who the key file says."""
        self._reach, self._clock = reach, clock
        self._member = member
        self._guest_since_s: float | None = None  # boot time
        self._introducing = trio.Lock()
        self._addresses: tuple[str, ...] = ()
        self._next, self._session = 0, 0
        self._news = trio.Event()
        self._have_grant = trio.Event()
        self._outdated = False
        self.be_guest: Callable[[bytes], None] = lambda member: None
        self.dialer = Dialer(reach.directory, local=not quic_only())
        self.dialer.register("quic", self._node)
        if member is not None:
            self._addresses = reach.addresses or _over_quic(member.identity)
        elif not reach.local:
            self._load()

    def _load(self) -> None:
        path = self._reach.key_file
        if path is None:
            raise Refused(
                f"there is no key in {self._reach.directory / 'keys'} to reach {self._reach} with; "
                "`trivium cluster join TOKEN` makes one, --identity names another"
            )
        identity = keyfiles.load_identity(path)
        self._member = Member(identity, self._clock)
        self._addresses = self._reach.addresses or _over_quic(identity)
        if not self._addresses:
            raise Refused(f"{path} has no address of the metadata server; name it with --connect HOST:PORT")

    async def metadata(self) -> Connection:
        """To the metadata server; another of its addresses each time that it is asked for."""
        await trio.lowlevel.checkpoint()
        if self._reach.local or self._member is None:
            return UnixConnection(str(self._reach.socket))
        address = self._addresses[self._next % len(self._addresses)]
        self._next += 1
        return self._member.metadata(address)

    async def _node(self, rest: str, member: bytes = b"") -> Connection:
        async with self._introducing:
            if self._member is None:
                self._member = await self._introduce(PrivateKey.generate())
        if not self._have_grant.is_set():
            self.be_guest(self._member.certificate.member)
            with trio.move_on_after(GRANT_WAIT_S):
                await self._have_grant.wait()
            if not self._have_grant.is_set():
                raise Unavailable("the metadata server has given no grant for nodes on other hosts yet")
        return await self._member.dial(rest, member)

    async def _introduce(self, key: PrivateKey) -> Member:
        """By the socket this process is somebody without a key; nodes on other hosts want to see one."""
        connection = UnixConnection(str(self._reach.socket))
        try:
            request = messages.encode(messages.Introduce(key.public.raw))
            reply = await connection.request(Service.IDENTITY, request)
        except Refused as error:
            raise Unavailable(f"no key for nodes on other hosts: {error}") from None
        finally:
            await connection.aclose()
        answer = statements.decode(messages.Joined, reply.body)
        identity = keyfiles.Identity(answer.cluster, key, answer.statement, answer.anchors)
        self._guest_since_s = self._clock.boot_s()
        return Member(identity, self._clock)

    def granted(self, session: int, grant: bytes) -> None:
        """The metadata server has given this grant to the session. Those of an earlier session are worth nothing."""
        if self._member is not None and grant:
            self._member.grant = grant
            self._have_grant.set()
            if session != self._session:
                self._session = session
                self._news.set()

    def heard_of_key(self, generation: int, retired: int) -> None:
        """The cluster's newest key is of this generation, and those up to `retired` count no more."""
        if self._member is not None and self._member.trust.retire_until(retired):
            self._forget(retired)
        if self._member is not None and self._member.certificate.generation < generation:
            self._outdated = True
            self._news.set()

    def _forget(self, retired: int) -> None:
        path = None if self._guest_since_s is not None else self._reach.key_file
        if path is not None:
            try:
                keyfiles.forget_anchors(path, retired)
            except (OSError, Refused, NotFound) as error:
                log.warning("%s still names a key of the cluster that counts no more: %s", path, error)

    async def keep_presenting(self) -> None:
        """Show newer grants to the nodes that are connected, while the process lives."""
        while True:
            with trio.move_on_after(PRESENT_S):
                await self._news.wait()
            self._news = trio.Event()
            if self._member is not None:
                with suppress(Unavailable):
                    await self._stay(self._member)
                if self._member.grant:
                    await self._member.present()

    async def _stay(self, member: Member) -> None:
        """Certificates of an older key of the cluster, and a guest's after hours, are renewed."""
        since_s = self._guest_since_s
        if since_s is not None and (self._outdated or self._clock.boot_s() - since_s > GUEST_RENEWAL_S):
            member.adopt((await self._introduce(member.identity.key)).identity)
            self._outdated = False
        elif self._outdated:
            await self.renew_certificate(member)
            self._outdated = False

    async def renew_certificate(self, member: Member) -> None:
        """Have it certified by the cluster's newest key; the key file follows. Unavailable."""
        connection = await self.metadata()
        try:
            renewed = await joining.reissue(connection, member.identity, member.trust)
        except Refused as error:
            raise Unavailable(f"the certificate is not renewed: {error}") from None
        finally:
            await connection.aclose()
        path = self._reach.key_file
        if path is not None:
            try:
                keyfiles.save_identity(path, renewed)
            except OSError as error:
                log.warning("the renewed certificate is not stored in %s: %s", path, error)
        if renewed.tls:  # clients hear of the newer key with their next heartbeat: until then they believe the older
            member.adopt(replace(renewed, tls=member.identity.tls))
            await trio.sleep(TLS_LATER_S)
        member.adopt(renewed)


def _over_quic(identity: keyfiles.Identity) -> tuple[str, ...]:
    return tuple(address for address in identity.addresses if address.startswith(SCHEME))
