"""Where a process listens over QUIC, and the address that it tells others.

`--listen HOST:PORT` may name all addresses of the host (0.0.0.0, [::]); what others are told is then `--advertise`,
else the address from which this host reaches the one that it talks to, else the host's name.
"""

from __future__ import annotations

import ipaddress
import platform
import socket
from collections.abc import Sequence

from trivium.admin.errors import CommandError
from trivium.cluster.errors import ClusterError, InUse, Refused
from trivium.cluster.identity.member import Member
from trivium.cluster.transport.quic import QuicAddress, QuicServer
from trivium.cluster.transport.quic.address import SCHEME

METADATA_PORT, NODE_PORT = 7400, 7401
ANYWHERE = "192.0.2.1"  # a documentation address: nothing is sent to it, the routes are only asked


async def listen(
    member: Member, where: tuple[str, int], *, needs_grant: bool = False, joiners: bool = False
) -> QuicServer:
    """Take the port. CommandError says why not."""
    try:
        server = member.server(str(QuicAddress(*where)), needs_grant=needs_grant, joiners=joiners)
        await server.bind()
    except InUse as error:
        raise CommandError(f"{error}; choose another --listen HOST:PORT.", 5) from None
    except ClusterError as error:
        raise CommandError(str(error)) from None
    return server


def told(server: QuicServer, advertise: str, towards: Sequence[str] = ()) -> str:
    """The address of this server for others. `towards`: addresses of who will use it."""
    bound = QuicAddress.parse(server.address)
    if advertise:
        return address_of(advertise, bound.port)
    try:
        everywhere = ipaddress.ip_address(bound.host).is_unspecified
    except ValueError:
        everywhere = False
    if not everywhere:
        return str(bound)
    hosts = [QuicAddress.parse(address).host for address in towards if address.startswith(SCHEME)]
    found = next((host for near in (*hosts, ANYWHERE) if (host := _from_here(near))), "")
    return str(QuicAddress(found or platform.node() or "localhost", bound.port))


def address_of(text: str, port: int = METADATA_PORT) -> str:
    """HOST, HOST:PORT or quic:HOST:PORT as an address. CommandError."""
    bare = text.removeprefix(SCHEME)
    for tried in (bare, f"{bare}:{port}"):
        try:
            return str(QuicAddress.parse(SCHEME + tried))
        except Refused:
            continue
    raise CommandError(f"{text!r} is no address; write HOST:PORT, an IPv6 HOST in brackets.", 2)


def _from_here(host: str) -> str:
    """The address of this host that packets to `host` bear; empty when there is no route."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # UDP: nothing is sent
            return str(probe.getsockname()[0])
    except OSError:
        return ""
