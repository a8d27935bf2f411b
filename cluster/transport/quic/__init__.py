"""The transport between hosts: QUIC, by one driver on trio with two engines of the same wire protocol.

    QuicConnection / QuicServer    what the rest of the product uses (cluster/transport/interface.py)
    link, serving, client          a connection's streams, budgets, HELLO; no sockets
    engine, engine_{aioquic,qh3}   packets, recovery, crypto; the time is an argument
    endpoint, udp, door            the socket, its tasks, and who may come in
"""

from trivium.cluster.transport.quic.address import QuicAddress
from trivium.cluster.transport.quic.certificate import ServerCertificate, make_certificate
from trivium.cluster.transport.quic.client import QuicConnection
from trivium.cluster.transport.quic.engine import available_engines, default_engine
from trivium.cluster.transport.quic.hello import Admission, ClientHello, Verifier
from trivium.cluster.transport.quic.server import QuicServer

__all__ = [
    "Admission",
    "ClientHello",
    "QuicAddress",
    "QuicConnection",
    "QuicServer",
    "ServerCertificate",
    "Verifier",
    "available_engines",
    "default_engine",
    "make_certificate",
]
