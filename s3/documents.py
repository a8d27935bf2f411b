"""Small bodies of requests: read whole, checked against their digests, parsed as XML."""

from __future__ import annotations

from trivium.s3 import checksums
from trivium.s3.context import S3Request, Service
from trivium.s3.errors import S3Error
from trivium.s3.ingest import payload_of
from trivium.s3.xml import Malformed, Node, parse


async def read_document(
    service: Service, request: S3Request, limit: int | None = None, *, of_object: bool = False
) -> bytes:
    """A small body: checked against its digests. S3Error."""
    limit = limit or service.limits.document_bytes
    payload, wanted = payload_of(request, 1 << 62, of_object=of_object)
    if payload.length is not None and payload.length > limit:
        raise S3Error("MaxMessageLengthExceeded", MaxMessageLengthBytes=str(limit))
    data = bytearray()
    view = memoryview(bytearray(64 * 1024))
    hashes = checksums.BodyHash(wanted)
    while count := await payload.read_into(view):
        hashes.update(view[:count])
        data += view[:count]
        if len(data) > limit:
            raise S3Error("MaxMessageLengthExceeded", MaxMessageLengthBytes=str(limit))
    hashes.finish(payload.trailers.get(wanted.trailer))
    return bytes(data)


async def read_xml(service: Service, request: S3Request, root: str, *, of_object: bool = False) -> Node:
    document = await read_document(service, request, of_object=of_object)
    if not document:
        raise S3Error("MalformedXML" if of_object else "MissingRequestBodyError")
    try:
        return parse(document, root, service.limits.document_bytes)
    except Malformed as error:
        raise S3Error("MaxMessageLengthExceeded" if error.too_large else "MalformedXML") from None


def need_digest(request: S3Request) -> None:
    """Operations whose loss in transit would be harmful ask for a digest of their document."""
    headers = request.headers
    if "content-md5" in headers or "x-amz-trailer" in headers or any(name in headers for name in checksums.HEADERS):
        return
    if request.claim is not None and len(request.claim.payload) == 64:
        return
    raise S3Error("InvalidRequest", "Missing required header for this request: Content-MD5 OR x-amz-checksum-*")
