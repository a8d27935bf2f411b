"""The engine on aioquic: pure Python, always there.

aioquic buffers out-of-order data up to windows that double as they are used, whether or not the gaps are filled; a
stream whose gaps pass REASSEMBLY_BYTES ends the connection here.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.tls import load_pem_private_key, load_pem_x509_certificates
from cryptography.hazmat.primitives.serialization import Encoding

from trivium.cluster.errors import Refused
from trivium.cluster.transport.quic.address import Endpoint
from trivium.cluster.transport.quic.engine import (
    ALPN,
    CID_BYTES,
    CONNECTION_WINDOW_BYTES,
    STREAM_WINDOW_BYTES,
    Datagram,
    EngineOptions,
    Secrets,
    Sink,
)

REASSEMBLY_BYTES = 4 * STREAM_WINDOW_BYTES
MAX_DATAGRAM_BYTES = 16_300  # a larger packet overflows the two-byte length field of handshake packets


class AioquicEngine:
    def __init__(self, options: EngineOptions) -> None:
        self._secrets = Secrets()
        server = options.certificate
        configuration = QuicConfiguration(
            alpn_protocols=[ALPN],
            connection_id_length=CID_BYTES,
            idle_timeout=options.idle_timeout_s,
            is_client=server is None,
            max_data=CONNECTION_WINDOW_BYTES,
            max_stream_data=STREAM_WINDOW_BYTES,
            max_datagram_size=min(options.datagram_bytes, MAX_DATAGRAM_BYTES),
            congestion_control_algorithm="cubic",
            supported_versions=[QuicProtocolVersion.VERSION_1],
            secrets_log_file=self._secrets,  # type: ignore[arg-type]
            verify_mode=ssl.CERT_NONE,  # the driver checks the pin; CertificateVerify is checked by the engine always
            server_name=None,
        )
        if server is None:
            self._quic = QuicConnection(configuration=configuration)
        else:
            configuration.certificate = load_pem_x509_certificates(server.certificate_pem)[0]
            configuration.private_key = load_pem_private_key(server.key_pem)
            self._quic = QuicConnection(
                configuration=configuration,
                original_destination_connection_id=options.original_cid,
                retry_source_connection_id=options.retry_cid,
            )
        self.cid = bytes(self._quic.host_cid)

    def connect(self, remote: Endpoint, now: float) -> None:
        self._quic.connect(remote, now)

    def receive(self, data: bytes, segment_bytes: int, remote: Endpoint, now: float) -> None:
        if len(data) <= segment_bytes:
            self._quic.receive_datagram(data, remote, now)
        else:
            for start in range(0, len(data), segment_bytes):
                self._quic.receive_datagram(data[start : start + segment_bytes], remote, now)
        if sum(len(stream.receiver._buffer) for stream in self._quic._streams.values()) > REASSEMBLY_BYTES:
            raise Refused("the peer leaves larger gaps in its streams than are buffered")

    def poll(self, sink: Sink) -> None:
        next_event = self._quic.next_event
        while (event := next_event()) is not None:
            if isinstance(event, events.StreamDataReceived):
                sink.on_data(event.stream_id, event.data, event.end_stream)
            elif isinstance(event, events.StreamReset):
                sink.on_reset(event.stream_id)
            elif isinstance(event, events.StopSendingReceived):
                sink.on_stop(event.stream_id)
            elif isinstance(event, events.HandshakeCompleted):
                sink.on_connected()
            elif isinstance(event, events.ConnectionTerminated):
                sink.on_closed(event.error_code, event.reason_phrase)
            elif isinstance(event, events.ConnectionIdIssued):
                sink.on_cid(event.connection_id, True)
            elif isinstance(event, events.ConnectionIdRetired):
                sink.on_cid(event.connection_id, False)

    def transmit(self, now: float) -> Sequence[Datagram]:
        return self._quic.datagrams_to_send(now)

    def timer(self) -> float | None:
        return self._quic.get_timer()

    def on_timer(self, now: float) -> None:
        self._quic.handle_timer(now)

    def open_stream(self) -> int:
        stream = self._quic.get_next_available_stream_id()
        self._quic.send_stream_data(stream, b"")  # takes the number
        return stream

    def write(self, stream: int, data: memoryview, fin: bool) -> None:
        self._quic.send_stream_data(stream, data, fin)  # type: ignore[arg-type]

    def reset(self, stream: int, code: int) -> None:
        known = self._quic._streams.get(stream)
        if known is not None and not known.sender.is_finished:
            self._quic.reset_stream(stream, code)

    def stop(self, stream: int, code: int) -> None:
        known = self._quic._streams.get(stream)
        if known is not None and not known.receiver.is_finished:
            self._quic.stop_stream(stream, code)

    def buffered_bytes(self) -> int:
        return sum(len(stream.sender._buffer) for stream in self._quic._streams.values())

    def ping(self) -> None:
        self._quic.send_ping(0)

    def close(self, code: int, reason: str) -> None:
        self._quic.close(error_code=code, reason_phrase=reason)

    def ending(self) -> str | None:
        event = self._quic._close_event
        return None if event is None else event.reason_phrase

    def peer_certificate(self) -> bytes | None:
        certificate = self._quic.tls._peer_certificate
        return None if certificate is None else certificate.public_bytes(Encoding.DER)

    def binding(self) -> bytes:
        return self._secrets.binding()
