"""The engine on qh3: packets, recovery and crypto in Rust behind aioquic's shape; the default where it imports."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from qh3._hazmat import Buffer
from qh3.quic import events
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection, QuicConnectionError
from qh3.quic.packet import QuicProtocolVersion, pull_quic_transport_parameters, push_quic_transport_parameters
from qh3.quic.tls_bridge import QuicTlsBridge
from qh3.tls import ExtensionType

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

logging.getLogger("quic").setLevel(logging.ERROR)  # it warns of every orderly close


DATAGRAM_LIMIT = 65_527


def _tell_datagram_limit(parameters: bytes) -> bytes:
    """qh3's clients announce that they take datagrams of 1,472 bytes whatever their configuration; ours take any."""
    known = pull_quic_transport_parameters(Buffer(data=parameters))
    known.max_udp_payload_size = DATAGRAM_LIMIT
    out = Buffer(capacity=len(parameters) + 64)
    push_quic_transport_parameters(out, known)
    return bytes(out.data)


class _Quic(QuicConnection):
    """qh3 2.1 hands a datagram to its core packet by packet, and so forgets to credit a client whose padding follows
    the packets (as aioquic's does) with the whole datagram. A server then runs out of what it may send before the
    address is validated, and its packet builder fails. Here a datagram's first packet keeps the padding."""

    _first = False

    def _create_tls(self, remote_source_cid: bytes | None) -> QuicTlsBridge:
        bridge = super()._create_tls(remote_source_cid)
        if self._is_client:
            bridge.tls.handshake_extensions = [
                (kind, _tell_datagram_limit(data) if kind == ExtensionType.QUIC_TRANSPORT_PARAMETERS else data)
                for kind, data in bridge.tls.handshake_extensions
            ]
        return bridge

    def receive_datagram(self, data: bytes, addr: Any, now: float) -> None:
        self._first = not self._handshake_complete and not self._is_client
        super().receive_datagram(data, addr, now)
        self._first = False

    def _call_core(self, operation: Callable[..., Any], *args: Any) -> Any:
        if self._first and len(args) == 4 and isinstance(args[3], int):
            self._first = False
            args = (args[0].ljust(args[3], b"\0"), *args[1:])
        return super()._call_core(operation, *args)


class Qh3Engine:
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
            max_datagram_size=options.datagram_bytes,
            probe_datagram_size=False,
            supported_versions=[QuicProtocolVersion.VERSION_1],
            secrets_log_file=self._secrets,  # type: ignore[arg-type]
            verify_mode=ssl.CERT_NONE,  # the driver checks the pin; CertificateVerify is checked by the engine always
            verify_hostname=False,
            server_name="trivium",
        )
        if server is None:
            self._quic = _Quic(configuration=configuration)
        else:
            configuration.load_cert_chain(server.certificate_pem, server.key_pem)
            self._quic = _Quic(
                configuration=configuration,
                original_destination_connection_id=options.original_cid,
                retry_source_connection_id=options.retry_cid,
            )
        self.cid = bytes(self._quic.host_cid)

    def connect(self, remote: Endpoint, now: float) -> None:
        self._quic.connect(remote, now)

    def receive(self, data: bytes, segment_bytes: int, remote: Endpoint, now: float) -> None:
        if len(data) <= segment_bytes:
            self._quic.receive_many_datagrams([data], remote, now)
        else:
            self._quic.receive_gro_buffer(data, segment_bytes, remote, now)

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
        core = self._quic._core
        if core is None:
            return ()
        datagrams = []
        poll = core.poll_transmit  # datagrams_to_send() parses every header again for its log
        while (datagram := poll(now)) is not None:
            datagrams.append((datagram[0], datagram[1]))
        return datagrams

    def timer(self) -> float | None:
        return self._quic.get_timer()

    def on_timer(self, now: float) -> None:
        self._quic.handle_timer(now)

    def open_stream(self) -> int:
        return self._quic._open_stream()

    def write(self, stream: int, data: memoryview, fin: bool) -> None:
        try:
            self._quic.send_stream_data(stream, data, fin)
        except ValueError as error:
            if "RESET_STREAM" not in str(error):  # the peer has told to stop: nobody wants the rest
                raise

    def reset(self, stream: int, code: int) -> None:
        with suppress(QuicConnectionError):  # the stream is over
            self._quic.reset_stream(stream, code)

    def stop(self, stream: int, code: int) -> None:
        with suppress(QuicConnectionError):
            self._quic.stop_stream(stream, code)

    def buffered_bytes(self) -> int:
        core = self._quic._core
        return 0 if core is None else core.get_send_buffer_size() + core.bytes_in_flight

    def ping(self) -> None:
        self._quic.send_ping(0)

    def close(self, code: int, reason: str) -> None:
        self._quic.close(error_code=code, reason_phrase=reason)

    def ending(self) -> str | None:
        event = self._quic._close_event
        return None if event is None else event.reason_phrase

    def peer_certificate(self) -> bytes | None:
        certificate = self._quic.get_peercert()
        return None if certificate is None else certificate.public_bytes()

    def binding(self) -> bytes:
        return self._secrets.binding()
