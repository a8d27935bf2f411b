"""Why somebody is not let in. The sentence is for the operator; `reason` is for programs and tests."""

from __future__ import annotations

from enum import StrEnum

from trivium.cluster.errors import Refused


class Reason(StrEnum):
    MALFORMED = "malformed"  # bytes that are no such thing, or not in their one canonical form
    UNKNOWN_KEY = "unknown_key"  # nobody of this cluster has signed for the key
    BAD_SIGNATURE = "bad_signature"
    REVOKED = "revoked"
    EXPIRED = "expired"
    NOT_YET = "not_yet"  # issued in the future of the metadata server's clock
    OTHER_CLUSTER = "other_cluster"
    OTHER_POOL = "other_pool"
    OTHER_CONNECTION = "other_connection"  # an answer to another challenge: replayed or relayed
    MISSING_RIGHT = "missing_right"
    NO_GRANT = "no_grant"
    SESSION_ENDED = "session_ended"
    TOKEN = "token"  # unknown, used, expired or mistyped: never says which to a stranger


class NotAdmitted(Refused):
    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason
