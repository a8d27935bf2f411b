"""The S3 face put together: HTTP requests in, operations on metadata and chunks out.

A request passes: health paths -> route -> CORS preflight -> authenticate -> authorise -> operate -> CORS headers.
Whatever goes wrong on the way becomes one S3 error document; nothing else ever reaches a client.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from trivium.cluster.clock import Clock, Executor, Random
from trivium.cluster.errors import ClusterError
from trivium.metadata.messages import MetadataError
from trivium.s3 import attributes, buckets, copying, cors, health, multipart, objects, postform, router, sharing, sigv4
from trivium.s3.accounts import ACTIONS, Accounts, Buckets
from trivium.s3.context import Chunks, Metadata, Operate, S3Limits, S3Request, Service
from trivium.s3.errors import S3Error, document, translate
from trivium.s3.http import HttpError, HttpServer, Limits, Request, Response, Truncated
from trivium.s3.ingest import first_cause
from trivium.s3.metrics import Metrics

log = logging.getLogger(__name__)

HANDLERS: dict[str, Operate] = {
    **buckets.HANDLERS,
    **objects.HANDLERS,
    **copying.HANDLERS,
    **attributes.HANDLERS,
    **multipart.HANDLERS,
    **sharing.HANDLERS,
}


class Gateway:
    """Serves S3. `domains`: names under which buckets are subdomains (virtual-host style)."""

    def __init__(
        self,
        metadata: Metadata,
        chunks: Chunks,
        *,
        random: Random,
        clock: Clock,
        executor: Executor,
        region: str = "us-east-1",
        domains: Sequence[str] = ("localhost",),
        limits: S3Limits | None = None,
        http_limits: Limits | None = None,
    ) -> None:
        self._random, self._clock = random, clock
        self._domains = tuple(domain.lower().rstrip(".") for domain in domains)
        self._limits = limits or S3Limits()
        self._buckets = Buckets(metadata, clock.boot_s)
        self._accounts = Accounts(metadata, self._buckets, clock.boot_s)
        self.metrics = Metrics()
        self._server = HttpServer(self.handle, self._refuse, http_limits)
        self._service = Service(
            metadata,
            chunks,
            executor,
            clock,
            region,
            self._limits,
            self._buckets,
            self._accounts.forget,
            self._accounts.authorize,
            self._request_id,
            trio.CapacityLimiter(max(1, self._limits.body_memory_bytes // self._limits.piece_bytes)),
        )

    async def serve(
        self,
        listeners: list[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Until cancelled (at once) or `stop()` (after what is in flight)."""
        await self._server.serve(listeners, task_status=task_status)

    def stop(self) -> None:
        self._server.stop()

    def forget_credential(self, access_key: str) -> None:
        """It has changed or is gone: do not wait for the cache."""
        self._accounts.forget(access_key)

    # ---- a request ----------------------------------------------------------------------------------------

    async def handle(self, http: Request) -> Response:
        kind = health.PATHS.get(http.path)
        if kind is not None and http.method in ("GET", "HEAD"):
            return health.answer(kind, self._problems(), self._render)
        if self.metrics.in_flight >= self._limits.requests_in_flight:
            self.metrics.slow_downs += 1
            return self._error(S3Error("SlowDown"), http, "Refused", self._request_id())
        self.metrics.in_flight += 1
        started = self._clock.boot_s()
        request = S3Request(http, "Unknown", b"", b"", {}, self._request_id())
        error: S3Error | None = None
        try:
            response = await self._serve(request)
        except Truncated:
            error = S3Error("IncompleteBody")
        except BaseExceptionGroup as group:
            error = self._known(first_cause(group), request)
        except Exception as failure:
            error = self._known(failure, request)
        finally:
            self.metrics.in_flight -= 1
        if error is not None:
            response = self._error(error, http, request.operation, request.request_id)
            if error.code == "IncompleteBody":
                response.close = True
        response.headers["x-amz-request-id"] = request.request_id
        if "origin" in http.headers:
            cors.add_headers(response, request)
        elapsed = self._clock.boot_s() - started
        self.metrics.observe(request.operation, response.status, elapsed, error.code if error else "")
        return response

    def _known(self, error: BaseException, request: S3Request) -> S3Error:
        if isinstance(error, S3Error):
            return error
        if isinstance(error, Truncated):
            return S3Error("IncompleteBody")
        if isinstance(error, (MetadataError, ClusterError)):
            known = translate(error)
            if known.status >= 500 and known.status != 503:
                log.error("request %s (%s): %s", request.request_id, request.operation, error)
            return known
        if isinstance(error, HttpError) or not isinstance(error, Exception):
            raise error
        log.error("request %s (%s) failed", request.request_id, request.operation, exc_info=error)
        return S3Error("InternalError")

    async def _serve(self, request: S3Request) -> Response:
        http = request.http
        place = router.locate(http.path, http.headers.get("host", ""), self._domains)
        request.bucket, request.key, request.virtual = place.bucket, place.key, place.virtual
        pairs = sigv4.split_query(http.query_string)
        request.query = _texts(pairs)
        if http.method == "OPTIONS":
            request.operation = "Preflight"
            return await cors.preflight(self._service, request)
        request.operation = router.operation(http.method, place, request.query, http.headers)
        if request.operation == "PostObject":
            return await postform.post_object(self._service, self._accounts, request)
        now_s = self._clock.wall_ns() / 1e9
        identity, claim, secret = await self._accounts.authenticate(request, pairs, now_s)
        request.identity, request.claim, request.secret = identity, claim, secret
        handler = HANDLERS.get(request.operation)
        action = ACTIONS.get(request.operation, f"s3:{request.operation}")
        if action:
            request.access = await self._accounts.authorize(request, action, request.bucket, request.key)
        elif request.identity.bucket and request.identity.bucket != request.bucket.decode("utf-8", "replace"):
            raise S3Error("AccessDenied")
        if handler is None:
            raise S3Error("NotImplemented", f"{request.operation} is not implemented.")
        response = await handler(self._service, request)
        if request.access is not None and request.access.open:  # the operation did not ask the object's ACL
            if response.finish is not None:
                await response.finish()
            raise S3Error("AccessDenied")
        return response

    # ---- answers ------------------------------------------------------------------------------------------

    def _request_id(self) -> str:
        return f"{self._random.getrandbits(64):016X}"

    def _error(self, error: S3Error, http: Request, operation: str, request_id: str) -> Response:
        if error.status == 304:
            return Response(304, dict(error.headers))
        headers = {"Content-Type": "application/xml", "x-amz-request-id": request_id, **error.headers}
        if error.status == 503:
            headers["Retry-After"] = "1"
        body = document(error, http.path, request_id)
        if http.method == "HEAD":
            return Response(error.status, headers, b"", length=0)
        return Response(error.status, headers, body)

    def _refuse(self, error: HttpError) -> Response:
        """Not even HTTP: there is no request to speak of."""
        self.metrics.observe("BadRequest", 400, 0.0, error.code)
        request_id = self._request_id()
        known = S3Error(error.code, str(error))
        headers = {"Content-Type": "application/xml", "x-amz-request-id": request_id}
        return Response(known.status, headers, document(known, "", request_id), close=True)

    def _problems(self) -> list[str]:
        if not self._service.metadata.map().pools:
            return ["No pool is known yet: the metadata server has not answered."]
        return []

    def _render(self) -> str:
        server = self._server
        return self.metrics.render(
            [
                ("trivium_s3_connections", "gauge", "Open connections.", server.connections),
                ("trivium_s3_connections_total", "counter", "Connections accepted.", server.connections_total),
                ("trivium_s3_received_bytes_total", "counter", "Bytes of closed connections.", server.bytes_received),
                ("trivium_s3_sent_bytes_total", "counter", "Bytes of closed connections.", server.bytes_sent),
            ]
        )


def _texts(pairs: sigv4.Pairs) -> dict[str, str]:
    """The first value of each name, as UTF-8 text (what is not UTF-8 is refused)."""
    query: dict[str, str] = {}
    try:
        for name, value in pairs:
            key = name if name.isascii() else name.encode("latin-1").decode()
            query.setdefault(key, value if value.isascii() else value.encode("latin-1").decode())
    except UnicodeDecodeError:
        raise S3Error("InvalidURI", "The query is not UTF-8.") from None
    return query
