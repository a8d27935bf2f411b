"""Browser uploads: POST of multipart/form-data with a signed policy. (Filled in below the parser.)"""

from __future__ import annotations

from trivium.s3.accounts import Accounts
from trivium.s3.context import S3Request, Service
from trivium.s3.errors import S3Error
from trivium.s3.http import Response


async def post_object(service: Service, accounts: Accounts, request: S3Request) -> Response:
    raise S3Error("NotImplemented")
