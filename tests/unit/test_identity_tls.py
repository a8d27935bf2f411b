"""The cluster's certificates in real TLS: each QUIC engine takes them, and refuses those of another cluster."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.fakes.identities import Authority
from trivium.cluster.identity import certificates
from trivium.cluster.identity.statements import Role


def handshake(client: str, server: str, folder: Path, good: bool) -> list[str]:
    """Both ends in memory; the events of the client."""
    pytest.importorskip(client)
    pytest.importorskip(server)
    authority = Authority()
    node = authority.member(Role.NODE)
    chain = certificates.server_certificate(authority.key, authority.cluster, 1, node.key.public.raw, (Role.NODE,))
    pinned = certificates.cluster_certificate(
        authority.key if good else Authority().key, authority.cluster, authority.generation
    )
    (folder / "chain").write_bytes(chain)
    (folder / "key").write_bytes(node.key.private_pem())
    engines = {
        name: tuple(importlib.import_module(f"{name}.quic.{part}") for part in ("configuration", "connection"))
        for name in {client, server}
    }
    serves = engines[server][0].QuicConfiguration(is_client=False, alpn_protocols=["t"])
    serves.load_cert_chain(str(folder / "chain"), str(folder / "key"))
    asks = engines[client][0].QuicConfiguration(
        is_client=True, alpn_protocols=["t"], server_name=certificates.server_name(authority.cluster)
    )
    asks.load_verify_locations(cadata=pinned)
    now, seen, far = 1_790_000_000.0, [], None
    near = engines[client][1].QuicConnection(configuration=asks)
    near.connect(("192.0.2.1", 1), now=now)
    for _ in range(12):
        for data, _address in near.datagrams_to_send(now=now):
            if far is None:
                far = engines[server][1].QuicConnection(
                    configuration=serves,
                    original_destination_connection_id=near.original_destination_connection_id,
                )
            far.receive_datagram(data, ("192.0.2.2", 2), now=now)
        assert far is not None
        for data, _address in far.datagrams_to_send(now=now):
            near.receive_datagram(data, ("192.0.2.1", 1), now=now)
        while event := near.next_event():
            seen.append(type(event).__name__)
        now += 0.05
    return seen


@pytest.mark.parametrize(("client", "server"), [("aioquic", "aioquic"), ("qh3", "aioquic"), ("qh3", "qh3")])
def test_engines_take_the_clusters_certificates_and_no_others(client: str, server: str, tmp_path: Path) -> None:
    assert "HandshakeCompleted" in handshake(client, server, tmp_path, good=True)
    assert "HandshakeCompleted" not in handshake(client, server, tmp_path, good=False)
