"""One table: what a caller of S3 is told. Everything below raises its own errors; they become S3's here and only here.

S3Error is the face's own error (code, sentence, HTTP status, extra XML elements). `translate` turns a MetadataError or
ClusterError into one. Codes are AWS's where AWS has one.
"""

from __future__ import annotations

from collections.abc import Mapping

from trivium.cluster import errors as cluster
from trivium.metadata.messages import CHUNK_REFUSED, LEASE_LOST, RETRY, SESSION_ENDED, MetadataError
from trivium.s3.xml import escape

CODES: dict[str, tuple[int, str]] = {
    "AccessControlListNotSupported": (400, "The bucket does not allow ACLs."),
    "AccessDenied": (403, "Access Denied."),
    "AuthorizationHeaderMalformed": (400, "The authorization header that you provided is not valid."),
    "AuthorizationQueryParametersError": (400, "The authorization query parameters are not valid."),
    "BadDigest": (400, "The Content-MD5 or checksum value that you specified did not match what the server received."),
    "BadRequest": (400, "The request is not well-formed HTTP."),
    "BucketAlreadyExists": (409, "The requested bucket name is not available. Select a different name."),
    "BucketAlreadyOwnedByYou": (409, "Your previous request to create the named bucket succeeded and you own it."),
    "BucketNotEmpty": (409, "The bucket that you tried to delete is not empty."),
    "ConditionalRequestConflict": (409, "A conflicting operation occurred. Try again."),
    "EntityTooLarge": (400, "Your proposed upload exceeds the maximum allowed object size."),
    "EntityTooSmall": (400, "Your proposed upload is smaller than the minimum allowed size."),
    "ExpiredToken": (400, "The provided token has expired."),
    "IllegalLocationConstraintException": (400, "The location constraint is not valid for this endpoint."),
    "IncompleteBody": (400, "You did not provide the number of bytes specified by the Content-Length HTTP header."),
    "InsufficientStorage": (507, "The pool is full: add drives or delete something. Nothing was changed."),
    "InternalError": (500, "An internal error occurred. Try again."),
    "InvalidAccessKeyId": (403, "The access key ID that you provided does not exist in our records."),
    "InvalidArgument": (400, "Invalid argument."),
    "InvalidBucketAclWithObjectOwnership": (
        400,
        "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting.",
    ),
    "InvalidBucketName": (400, "The specified bucket is not valid."),
    "InvalidBucketState": (409, "The request is not valid for the current state of the bucket."),
    "InvalidChunkSizeError": (403, "Only the last chunk is allowed to have a size less than 8192 bytes."),
    "InvalidDigest": (400, "The Content-MD5 or checksum value that you specified is not valid."),
    "InvalidObjectState": (403, "The operation is not valid for the object's storage class."),
    "InvalidPart": (
        400,
        "One or more of the specified parts could not be found. The part may not have been uploaded, or the specified "
        "entity tag may not match the part's entity tag.",
    ),
    "InvalidPartNumber": (416, "The requested partnumber is not satisfiable."),
    "InvalidPartOrder": (400, "The list of parts was not in ascending order. Parts must be ordered by part number."),
    "InvalidPolicyDocument": (400, "Invalid Policy: Invalid JSON."),
    "InvalidRange": (416, "The requested range is not satisfiable."),
    "InvalidRequest": (400, "Invalid Request."),
    "InvalidStorageClass": (400, "The storage class that you specified is not valid."),
    "InvalidTag": (400, "The tag provided was not a valid tag."),
    "InvalidToken": (400, "The provided token is malformed or otherwise not valid."),
    "InvalidURI": (400, "The specified URI couldn't be parsed."),
    "KeyTooLongError": (400, "Your key is too long."),
    "MalformedACLError": (400, "The ACL that you provided was not well formed or did not validate."),
    "MalformedPOSTRequest": (400, "The body of your POST request is not well-formed multipart/form-data."),
    "MalformedPolicy": (400, "Your policy is not well formed."),
    "MalformedTrailerError": (400, "The request contained trailing data that was not well-formed."),
    "MalformedXML": (400, "The XML you provided was not well-formed or did not validate against our published schema."),
    "MaxMessageLengthExceeded": (400, "Your request was too large."),
    "MaxPostPreDataLengthExceeded": (400, "Your POST request fields preceding the upload file were too large."),
    "MetadataTooLarge": (400, "Your metadata headers exceed the maximum allowed metadata size."),
    "MethodNotAllowed": (405, "The specified method is not allowed against this resource."),
    "MissingContentLength": (411, "You must provide the Content-Length HTTP header."),
    "MissingRequestBodyError": (400, "Request body is empty."),
    "MissingSecurityHeader": (400, "Your request is missing a required header."),
    "NoSuchBucket": (404, "The specified bucket does not exist."),
    "NoSuchBucketPolicy": (404, "The bucket policy does not exist."),
    "NoSuchCORSConfiguration": (404, "The CORS configuration does not exist."),
    "NoSuchConfiguration": (404, "The specified configuration does not exist."),
    "NoSuchKey": (404, "The specified key does not exist."),
    "NoSuchLifecycleConfiguration": (404, "The lifecycle configuration does not exist."),
    "NoSuchObjectLockConfiguration": (404, "The specified object does not have an object lock configuration."),
    "NoSuchPublicAccessBlockConfiguration": (404, "The public access block configuration was not found."),
    "NoSuchTagSet": (404, "The TagSet does not exist."),
    "NoSuchUpload": (
        404,
        "The specified multipart upload does not exist. The upload ID might not be valid, or the multipart upload "
        "might have been aborted or completed.",
    ),
    "NoSuchVersion": (404, "The specified version does not exist."),
    "NoSuchWebsiteConfiguration": (404, "The specified bucket does not have a website configuration."),
    "NotImplemented": (501, "A header or query you provided implies functionality that is not implemented."),
    "NotModified": (304, ""),
    "ObjectLockConfigurationNotFoundError": (404, "Object Lock configuration does not exist for this bucket."),
    "OperationAborted": (409, "A conflicting operation is in progress against this resource. Try again."),
    "OwnershipControlsNotFoundError": (404, "The bucket ownership controls were not found."),
    "PreconditionFailed": (412, "At least one of the preconditions that you specified did not hold."),
    "QuotaExceeded": (403, "The quota is used up."),
    "ReplicationConfigurationNotFoundError": (404, "The replication configuration was not found."),
    "RequestHeaderSectionTooLarge": (400, "Your request header and query parameters exceed the maximum allowed size."),
    "RequestTimeTooSkewed": (403, "The difference between the request time and the server's time is too large."),
    "RequestTimeout": (
        400,
        "Your socket connection to the server was not read from or written to within the time-out.",
    ),
    "ServerSideEncryptionConfigurationNotFoundError": (404, "The server-side encryption configuration was not found."),
    "ServiceUnavailable": (503, "Part of the cluster is away. Try again."),
    "SignatureDoesNotMatch": (
        403,
        "The request signature that the server calculated does not match the signature that you provided. Check your "
        "secret access key and signing method.",
    ),
    "SlowDown": (503, "Please reduce your request rate."),
    "TooManyParts": (400, "You have attempted to create more parts than allowed."),
    "UnresolvableGrantByEmailAddress": (400, "The email address you provided does not match any account on record."),
    "UnexpectedContent": (400, "This request does not support content."),
    "XAmzContentChecksumMismatch": (400, "The provided x-amz-checksum header does not match what was computed."),
    "XAmzContentSHA256Mismatch": (400, "The provided x-amz-content-sha256 header does not match what was computed."),
}

# what the metadata server says in its own words (errno names and session codes)
FROM_METADATA: dict[str, str] = {
    SESSION_ENDED: "ServiceUnavailable",
    LEASE_LOST: "ServiceUnavailable",
    CHUNK_REFUSED: "ServiceUnavailable",
    RETRY: "SlowDown",
    "ENOSPC": "InsufficientStorage",
    "EDQUOT": "QuotaExceeded",
    "ESTALE": "OperationAborted",
    "ENAMETOOLONG": "KeyTooLongError",
    "EINVAL": "InvalidArgument",
    "EACCES": "AccessDenied",
    "EPERM": "AccessDenied",
}

FROM_CLUSTER: tuple[tuple[type[cluster.ClusterError], str], ...] = (
    (cluster.Unavailable, "ServiceUnavailable"),
    (cluster.NoSpace, "InsufficientStorage"),
    (cluster.ClusterError, "InternalError"),
)


LOST = (
    "Bytes of this object are lost: more drives are gone than its parity can replace. The rest of it, and of the pool, "
    "stays readable; the operator sees all names with `trivium fsck --lost`."
)


class S3Error(Exception):
    """Answered to the client as it is. `extra`: more elements of the error document (BucketName …)."""

    def __init__(self, code: str, message: str = "", /, **extra: str) -> None:
        status, standard = CODES.get(code, (500, "An internal error occurred."))
        self.code, self.status, self.message, self.extra = code, status, message or standard, extra
        self.headers: dict[str, str] = {}
        super().__init__(f"{code}: {self.message}")


def translate(error: MetadataError | cluster.ClusterError) -> S3Error:
    """The S3 error of an error from below."""
    if isinstance(error, MetadataError):
        code = FROM_METADATA.get(error.code, error.code)
        if code not in CODES:
            return S3Error("InternalError", f"The metadata server answered {error.code}.")
        return S3Error(code, error.text)
    code = next(code for cls, code in FROM_CLUSTER if isinstance(error, cls))
    return S3Error(code, LOST if isinstance(error, cluster.ChunkLost) else "")


def document(error: S3Error, resource: str, request_id: str) -> bytes:
    """The error as XML."""
    extra: Mapping[str, str] = error.extra
    more = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in extra.items())
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{error.code}</Code><Message>{escape(error.message)}</Message>{more}"
        f"<Resource>{escape(resource)}</Resource><RequestId>{request_id}</RequestId><HostId>trivium</HostId></Error>"
    ).encode()
