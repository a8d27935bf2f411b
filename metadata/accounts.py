"""Credentials of S3 users."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trivium.metadata.messages import Credential, GetCredential, MetadataError, SetCredential, UnknownUsers

if TYPE_CHECKING:
    from trivium.metadata.tx import Reader, Tx


def set_credential(tx: Tx, op: SetCredential) -> None:
    credential = op.credential
    if not credential.access_key:
        raise MetadataError("EINVAL", "a credential has an access key")
    if not credential.secret_key:
        tx.run("DELETE FROM credentials WHERE access_key = ?", credential.access_key)
        return
    tx.run(
        "INSERT INTO credentials (access_key, secret_key, user, bucket, root) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (access_key) DO UPDATE SET secret_key = excluded.secret_key, user = excluded.user,"
        " bucket = excluded.bucket, root = excluded.root",
        *(credential.access_key, credential.secret_key, credential.user, credential.bucket, int(credential.root)),
    )


def get_credential(reader: Reader, query: GetCredential) -> Credential:
    row = reader.one(
        "SELECT access_key, secret_key, user, bucket, root FROM credentials WHERE access_key = ?", query.access_key
    )
    if row is None:
        raise MetadataError("InvalidAccessKeyId", "the access key is not known")
    return Credential(row[0], row[1], row[2], row[3], bool(row[4]))


def list_credentials(reader: Reader) -> tuple[Credential, ...]:
    rows = reader.all("SELECT access_key, secret_key, user, bucket, root FROM credentials ORDER BY access_key")
    return tuple(Credential(row[0], row[1], row[2], row[3], bool(row[4])) for row in rows)


def unknown_users(reader: Reader, query: UnknownUsers) -> tuple[str, ...]:
    known = {user for (user,) in reader.all("SELECT DISTINCT user FROM credentials")}
    return tuple(user for user in query.users if user not in known)
