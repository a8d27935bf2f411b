"""The root credential of the S3 gateway: from the environment, else generated at the first start and kept as a row."""

from __future__ import annotations

import os
import secrets

from trivium.admin.errors import CommandError
from trivium.metadata.messages import Credential

USER, PASSWORD = "TRIVIUM_ROOT_USER", "TRIVIUM_ROOT_PASSWORD"


def root_credential() -> Credential | None:
    """What the environment says; None when it says nothing. CommandError when it is not usable."""
    user, password = os.environ.get(USER, ""), os.environ.get(PASSWORD, "")
    if not user and not password:
        return None
    if len(user) < 3 or len(password) < 8:
        raise CommandError(f"{USER} needs at least 3 characters and {PASSWORD} at least 8; set both or neither.")
    return Credential(user, password, "root", "", True)


def generated() -> Credential:
    return Credential("TV" + secrets.token_hex(9).upper(), secrets.token_urlsafe(30), "root", "", True)
