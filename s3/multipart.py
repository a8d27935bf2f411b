"""Multipart uploads: create, upload and copy parts, complete, abort, list.

Checksums: the upload's algorithm is computed for every part; the whole's is combined from the parts' (FULL_OBJECT:
CRCs only) or is a checksum of checksums (COMPOSITE). No byte is read again to complete an upload.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec

from trivium.metadata.messages import (
    INLINE_MAX,
    AbortUpload,
    CompleteUpload,
    CopyPart,
    CreateUpload,
    GetUpload,
    ListParts,
    MetadataError,
    ObjectMeta,
    PartInfo,
    PartListing,
    PutPart,
    UploadInfo,
)
from trivium.s3 import checksums, conditions, describe
from trivium.s3.access import check_users, new_owner
from trivium.s3.context import Operate, S3Request, Service
from trivium.s3.copying import copy_source, head_source
from trivium.s3.documents import read_xml
from trivium.s3.errors import S3Error
from trivium.s3.http import Response
from trivium.s3.ingest import commit, payload_of, receive
from trivium.s3.listing import iso_date, owner_element, xml_answer
from trivium.s3.reader import Reader
from trivium.s3.xml import Malformed, Node, element, escape

MAX_PART = 10_000


def part_number(request: S3Request) -> int:
    text = request.query.get("partNumber", "")
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= MAX_PART:
        raise S3Error(
            "InvalidArgument",
            f"Part number must be an integer between 1 and {MAX_PART}, inclusive",
            ArgumentName="partNumber",
            ArgumentValue=text[:64],
        )
    return int(text)


def _kind(headers: dict[str, str]) -> tuple[str, str]:
    """(algorithm, type) of a new upload. S3Error."""
    algorithm = checksums.algorithm_named(headers.get("x-amz-checksum-algorithm", ""))
    kind = headers.get("x-amz-checksum-type", "").upper()
    if kind and kind not in (checksums.FULL_OBJECT, checksums.COMPOSITE):
        raise S3Error("InvalidRequest", "Value for x-amz-checksum-type header is invalid.")
    if kind and not algorithm:
        raise S3Error(
            "InvalidRequest",
            "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.",
        )
    if not algorithm:
        return "", ""
    kind = kind or (checksums.FULL_OBJECT if algorithm == "CRC64NVME" else checksums.COMPOSITE)
    if (kind == checksums.FULL_OBJECT and algorithm in ("SHA1", "SHA256")) or (
        kind == checksums.COMPOSITE and algorithm == "CRC64NVME"
    ):
        raise S3Error(
            "InvalidRequest",
            f"The {kind} checksum type cannot be used with the {algorithm.lower()} checksum algorithm.",
        )
    return algorithm, kind


async def create_upload(service: Service, request: S3Request) -> Response:
    algorithm, kind = _kind(request.headers)
    meta = describe.meta_of(request.headers, service.limits.user_metadata_bytes)
    meta = msgspec.structs.replace(meta, checksum_algorithm=algorithm, checksum_type=kind)
    owner, grants = new_owner(request, request.headers)
    await check_users(service, grants, owner)
    meta = describe.with_grants(meta, grants)
    (upload,) = await service.metadata.call(CreateUpload(request.bucket, request.key, meta, owner))
    response = xml_answer(
        "InitiateMultipartUploadResult",
        [
            element("Bucket", request.bucket.decode()),
            element("Key", request.key.decode()),
            element("UploadId", upload.id),
        ],
    )
    if algorithm:
        response.headers["x-amz-checksum-algorithm"] = algorithm
        response.headers["x-amz-checksum-type"] = kind
    return response


async def _upload(service: Service, request: S3Request) -> UploadInfo:
    upload: UploadInfo = await service.metadata.ask(
        GetUpload(request.bucket, request.key, request.query.get("uploadId", ""))
    )
    return upload


async def upload_part(service: Service, request: S3Request) -> Response:
    number = part_number(request)
    describe.refuse_unsupported(request.headers)
    payload, wanted = payload_of(request, service.limits.part_bytes)
    upload = await _upload(service, request)
    algorithm = upload.meta.checksum_algorithm
    if algorithm and wanted.algorithm and wanted.algorithm != algorithm:
        raise S3Error(
            "InvalidRequest",
            f"Checksum Type mismatch occurred, expected checksum Type: {algorithm.lower()}, "
            f"actual checksum Type: {wanted.algorithm.lower()}",
        )
    if algorithm and not wanted.algorithm:
        wanted = checksums.Expected(wanted.md5, wanted.sha256, algorithm)
    received = await receive(service, payload, wanted, service.limits.part_bytes)
    checksum = received.checksum if algorithm else ""
    info: PartInfo = await commit(
        service,
        received,
        lambda body: PutPart(request.bucket, request.key, upload.id, number, body, received.etag, checksum),
    )
    headers = {"ETag": f'"{info.etag or received.etag}"'}
    if received.checksum:
        headers[f"x-amz-checksum-{wanted.algorithm.lower()}"] = received.checksum
    return Response(200, headers)


async def upload_part_copy(service: Service, request: S3Request) -> Response:
    number = part_number(request)
    bucket, key = copy_source(request)
    access = await service.authorize(request, "s3:GetObject", bucket, key)
    upload = await _upload(service, request)
    source = await head_source(service, request, access, bucket, key, layout=True)
    begin, end = _copy_range(request, source.size)
    if end - begin > service.limits.part_bytes:
        raise S3Error(
            "InvalidRequest",
            "The specified copy source is larger than the maximum allowable size for a copy "
            f"source: {service.limits.part_bytes}",
        )
    guards = conditions.of_copy_source(request.headers)
    if not guards.if_match:  # the hashes below are of what was looked at
        guards = msgspec.structs.replace(guards, if_match=source.etag)
    algorithm = upload.meta.checksum_algorithm
    hashes = checksums.BodyHash(checksums.Expected(algorithm=algorithm))
    if end - begin <= INLINE_MAX:
        for buffer in await Reader(service, source, begin, end).first() or []:
            hashes.update(buffer)
    else:
        await Reader(service, source, begin, end).update(hashes.update)
    etag, checksum = hashes.finish()
    (part,) = await service.metadata.call(
        CopyPart(
            request.bucket, request.key, upload.id, number, bucket, key, begin, end - begin, etag, guards, checksum
        )
    )
    result = [f"<LastModified>{iso_date(part.mtime)}</LastModified><ETag>&quot;{escape(part.etag)}&quot;</ETag>"]
    if checksum:
        result.append(element(f"Checksum{algorithm}", checksum))
    return xml_answer("CopyPartResult", result)


def _copy_range(request: S3Request, size: int) -> tuple[int, int]:
    text = request.headers.get("x-amz-copy-source-range")
    if text is None:
        return 0, size
    first, dash, last = text.strip().removeprefix("bytes=").partition("-")
    numbers = first.isascii() and first.isdigit() and last.isascii() and last.isdigit()
    if not text.strip().startswith("bytes=") or not dash or not numbers or len(first + last) > 40:
        raise S3Error(
            "InvalidArgument",
            "The x-amz-copy-source-range value must be of the form bytes=first-last where "
            "first and last are the zero-based offsets of the first and last bytes to copy",
            ArgumentName="x-amz-copy-source-range",
            ArgumentValue=text[:64],
        )
    begin, end = int(first), int(last) + 1
    if begin < end and end > size:
        raise S3Error("InvalidRange", ActualObjectSize=str(size), RangeRequested=text[:64])
    if begin >= end:
        raise S3Error(
            "InvalidArgument",
            f"Range specified is not valid for source object of size: {size}",
            ArgumentName="x-amz-copy-source-range",
            ArgumentValue=text[:64],
        )
    return begin, end


# ---- complete -----------------------------------------------------------------------------------------------


def _named_parts(document: Node) -> list[tuple[int, str, str]]:
    """(number, etag, checksum) in the document's order. S3Error."""
    parts = []
    try:
        for node in document.all("Part"):
            number_text, etag = node.need("PartNumber").strip(), conditions.unquote_etag(node.need("ETag"))
            if not number_text.isascii() or not number_text.isdigit():
                raise S3Error("MalformedXML")
            given = [child.text.strip() for child in node.children if child.name in checksums.ELEMENTS]
            if len(given) > 1:
                raise S3Error("MalformedXML")
            parts.append((int(number_text[:9]), etag, given[0] if given else ""))
    except Malformed:
        raise S3Error("MalformedXML") from None
    if not parts or len(parts) > MAX_PART:
        raise S3Error("MalformedXML")
    if any(later[0] <= earlier[0] for earlier, later in pairwise(parts)):
        raise S3Error("InvalidPartOrder")
    return parts


async def _all_parts(service: Service, request: S3Request, upload: str) -> dict[int, PartInfo]:
    found: dict[int, PartInfo] = {}
    after, more = 0, True
    while more:
        page: PartListing = await service.metadata.ask(ListParts(request.bucket, request.key, upload, after, 1000))
        found.update((part.number, part) for part in page.parts)
        more = page.truncated and bool(page.parts)
        after = page.parts[-1].number if page.parts else after
    return found


def _whole(meta: ObjectMeta, parts: list[PartInfo]) -> str:
    """The checksum of the object that these parts make."""
    algorithm = meta.checksum_algorithm
    try:
        digests = [checksums.from_base64(part.checksum, checksums.SIZES[algorithm]) for part in parts]
    except ValueError:
        raise S3Error("InvalidPart", "A part has no checksum of the upload's kind.") from None
    if meta.checksum_type == checksums.COMPOSITE:
        return checksums.composite(algorithm, digests)
    sizes = [part.size for part in parts]
    return checksums.to_base64(checksums.combine(algorithm, list(zip(digests, sizes, strict=True))))


def _check_whole(headers: dict[str, str], meta: ObjectMeta, checksum: str) -> None:
    """What the client says about the whole must agree. S3Error."""
    kind = headers.get("x-amz-checksum-type", "").upper()
    if kind and kind != (meta.checksum_type or kind):
        raise S3Error(
            "InvalidRequest",
            f"The upload was created using the {meta.checksum_type} checksum mode. The "
            "complete request must use the same checksum mode.",
        )
    for name, algorithm in checksums.HEADERS.items():
        if name not in headers or algorithm != meta.checksum_algorithm:
            continue
        said = headers[name].strip()
        if said not in (checksum, checksum.partition("-")[0]):
            raise S3Error("BadDigest", f"The {algorithm} you specified did not match the calculated checksum.")


async def complete_upload(service: Service, request: S3Request) -> Response:
    upload_id = request.query.get("uploadId", "")
    headers = request.headers
    # the checksum headers of this request speak of the object, not of the document
    document = await read_xml(service, request, "CompleteMultipartUpload", of_object=True)
    named = _named_parts(document)
    guards = conditions.of_write(headers)
    size_text = headers.get("x-amz-mp-object-size", "")
    if size_text and not (size_text.isascii() and size_text.isdigit() and len(size_text) < 16):
        raise S3Error("InvalidRequest", "x-amz-mp-object-size is not a number.")
    meta, checksum = await _checksum_of(service, request, upload_id, named)
    (info,) = await service.metadata.call(
        CompleteUpload(
            request.bucket,
            request.key,
            upload_id,
            tuple(named),
            guards,
            checksum,
            meta.checksum_type if checksum else "",
            int(size_text) if size_text else -1,
        )
    )
    bucket, key = request.bucket.decode(), request.key.decode()
    host = headers.get("host", "")
    parts = [
        element("Location", f"http://{host}/{bucket}/{key}"),
        element("Bucket", bucket),
        element("Key", key),
        f"<ETag>&quot;{escape(info.etag)}&quot;</ETag>",
    ]
    done = info.meta if info.meta.checksum else meta  # of a retry only the first answer knows it
    if checksum or done.checksum:
        parts.append(element(f"Checksum{done.checksum_algorithm}", checksum or done.checksum))
        parts.append(element("ChecksumType", done.checksum_type))
    return xml_answer("CompleteMultipartUploadResult", parts)


async def _checksum_of(
    service: Service, request: S3Request, upload_id: str, named: list[tuple[int, str, str]]
) -> tuple[ObjectMeta, str]:
    """(the upload's description, the whole's checksum). A retry of a completed upload has none left to compute."""
    try:
        upload: UploadInfo = await service.metadata.ask(GetUpload(request.bucket, request.key, upload_id))
    except MetadataError as error:
        if error.code != "NoSuchUpload":
            raise
        return ObjectMeta(), ""  # perhaps a retry: the metadata server remembers what it answered
    if not upload.meta.checksum_algorithm:
        return upload.meta, ""
    there = await _all_parts(service, request, upload_id)
    parts = []
    for number, etag, checksum in named:
        part = there.get(number)
        if part is None or part.etag != etag or (checksum and checksum != part.checksum):
            raise S3Error("InvalidPart", UploadId=upload_id, PartNumber=str(number), ETag=etag)
        parts.append(part)
    whole = _whole(upload.meta, parts)
    _check_whole(request.headers, upload.meta, whole)
    return upload.meta, whole


async def abort_upload(service: Service, request: S3Request) -> Response:
    if request.access is not None and request.access.open:
        request.access.check_upload((await _upload(service, request)).owner)
    await service.metadata.call(AbortUpload(request.bucket, request.key, request.query.get("uploadId", "")))
    return Response(204)


async def list_parts(service: Service, request: S3Request) -> Response:
    limit = request.number("max-parts", 1000, 0, 1000)
    marker = request.number("part-number-marker", 0, 0, 1 << 31)
    upload_id = request.query.get("uploadId", "")
    page: PartListing = await service.metadata.ask(
        ListParts(request.bucket, request.key, upload_id, marker, max(1, limit))
    )
    upload = page.upload
    if request.access is not None:
        request.access.check_upload(upload.owner)
    shown = page.parts[:limit]
    algorithm = upload.meta.checksum_algorithm
    lines = []
    for part in shown:
        checksum = element(f"Checksum{algorithm}", part.checksum) if algorithm and part.checksum else ""
        lines.append(
            f"<Part><PartNumber>{part.number}</PartNumber><LastModified>{iso_date(part.mtime)}</LastModified>"
            f"<ETag>&quot;{escape(part.etag)}&quot;</ETag><Size>{part.size}</Size>{checksum}</Part>"
        )
    truncated = page.truncated and limit > 0
    return xml_answer(
        "ListPartsResult",
        [
            element("Bucket", request.bucket.decode()),
            element("Key", request.key.decode()),
            element("UploadId", upload_id),
            owner_element("Initiator", upload.owner),
            owner_element("Owner", upload.owner),
            element("StorageClass", upload.meta.storage_class),
            element("PartNumberMarker", marker),
            element("NextPartNumberMarker", shown[-1].number if shown else 0),
            element("MaxParts", limit),
            element("IsTruncated", "true" if truncated else "false"),
            element("ChecksumAlgorithm", algorithm or None),
            element("ChecksumType", upload.meta.checksum_type or None),
            *lines,
        ],
    )


HANDLERS: dict[str, Operate] = {
    "CreateMultipartUpload": create_upload,
    "UploadPart": upload_part,
    "UploadPartCopy": upload_part_copy,
    "CompleteMultipartUpload": complete_upload,
    "AbortMultipartUpload": abort_upload,
    "ListParts": list_parts,
}
