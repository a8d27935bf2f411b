"""What one process believes: whose signatures count, who is revoked, what time it is for the metadata server.

    anchors   stable(g) --handover signed by g--> overlap(g, g+1) --retire--> stable(g+1)
    clock     unknown --first word of a metadata server--> counts on from there --later word--> counts on from that

Invariants:
1. An anchor enters by a pin, or by a handover that a trusted anchor signed; never by anything else. One that was
   retired does not come back.
2. The list of the revoked only grows in version; a member once revoked stays so in this process. A list that an earlier
   process kept counts from the start (`recall`), but it says neither what time it is nor that nobody was revoked since.
3. Time is the metadata server's as last heard, carried on by a clock that neither steps nor stops. A new leader's
   clock replaces it, also backwards (clocks two minutes apart must not end every grant). Without fresh word a
   verified grant carries the time forward, for nobody else could have said it.
"""

from __future__ import annotations

from collections.abc import Iterable

from trivium.cluster.clock import Clock
from trivium.cluster.identity.keys import PublicKey, fingerprint
from trivium.cluster.identity.refusals import NotAdmitted, Reason
from trivium.cluster.identity.statements import (
    LIST_MAX,
    Certificate,
    Grant,
    Handover,
    Revocations,
    Role,
    peek,
    verify,
)

S = 1_000_000_000
GRANT_S = 60
READS_GO_ON_S = 15 * 60  # past a grant's end, on a connection that is open
SKEW_S = 30  # a grant may be so much newer than the metadata server's clock as carried on here
FRESH_S = 60.0  # how long its word is fresh
CACHE_MAX = 1024  # certificates that were verified of late


class MetadataClock:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heard_ns: int | None = None
        self._at_s = 0.0

    def heard(self, now_ns: int) -> None:
        self._heard_ns, self._at_s = now_ns, self._clock.boot_s()

    def now_ns(self) -> int | None:
        """None: no metadata server has been heard yet."""
        if self._heard_ns is None:
            return None
        return self._heard_ns + int((self._clock.boot_s() - self._at_s) * S)

    def fresh(self) -> bool:
        return self._heard_ns is not None and self._clock.boot_s() - self._at_s <= FRESH_S

    def at_least(self, issued_ns: int) -> None:
        """A verified grant was issued then. NotAdmitted when a metadata server's own word contradicts it."""
        now = self.now_ns()
        if now is not None and issued_ns <= now:
            return
        if now is not None and self.fresh():
            if issued_ns > now + SKEW_S * S:
                raise NotAdmitted(
                    Reason.NOT_YET, "the grant is newer than the metadata server's clock: its issuer is not the leader"
                )
            return
        self.heard(issued_ns)


class Trust:
    def __init__(self, cluster: bytes, clock: Clock) -> None:
        self.cluster = cluster
        self.clock = MetadataClock(clock)
        self.version = -1  # of the list of the revoked
        self.in_touch = False  # a metadata server has told this process who is revoked
        self._anchors: dict[int, PublicKey] = {}
        self._retired = 0  # generations up to this one do not come back
        self._revoked: set[bytes] = set()
        self._ended: dict[int, int] = {}  # session -> when it may be forgotten
        self._verified: dict[bytes, Certificate] = {}

    # ---- anchors --------------------------------------------------------------------------------------------

    @property
    def anchors(self) -> dict[int, PublicKey]:
        return dict(self._anchors)

    def pin(self, generation: int, public: bytes) -> None:
        """Believe this key of the cluster. The caller knows it: from its own key file, or by a token's fingerprint."""
        if generation > self._retired:
            self._anchors[generation] = PublicKey.load(public)

    def hand_over(self, statement: bytes) -> Handover:
        """The cluster's key was rotated; an older key that is trusted here says so."""
        claim = peek(Handover, statement)
        signer = self._anchors.get(claim.generation - 1)
        if signer is None:
            if claim.generation in self._anchors and self._anchors[claim.generation].raw == claim.public:
                return claim  # known already, and what signed it is retired
            raise NotAdmitted(Reason.UNKNOWN_KEY, "the new cluster key was handed over by a key that is not pinned")
        done = verify(Handover, statement, signer)
        self._of_this_cluster(done.cluster)
        known = self._anchors.get(done.generation)
        if known is not None and known.raw != done.public:
            raise NotAdmitted(Reason.UNKNOWN_KEY, "two keys claim to follow the cluster's key")
        self.pin(done.generation, done.public)
        return done

    def retire(self, generation: int) -> None:
        """The old key's certificates do not count any more."""
        if generation in self._anchors and len(self._anchors) > 1:
            del self._anchors[generation]
            self._retired = max(self._retired, generation)
            self._verified.clear()

    def retire_until(self, generation: int) -> bool:
        """This one and all before it; True when that is news here."""
        before = len(self._anchors)
        for known in sorted(self._anchors):
            if known <= generation:
                self.retire(known)
        return len(self._anchors) < before

    # ---- certificates ---------------------------------------------------------------------------------------

    def certificate(self, statement: bytes) -> Certificate:
        """Verified and not revoked, else NotAdmitted."""
        found = self._verified.get(statement)
        if found is None:
            found = self._verify(statement)
            if len(self._verified) >= CACHE_MAX:
                self._verified.clear()
            self._verified[statement] = found
        self.check_member(found.member)
        now = self.clock.now_ns()
        if found.expires_ns and now is not None and now >= found.expires_ns:
            raise NotAdmitted(Reason.EXPIRED, f"the certificate of {found.name} has expired; join again with a token")
        return found

    def _verify(self, statement: bytes) -> Certificate:
        claim = peek(Certificate, statement)
        self._of_this_cluster(claim.cluster)
        anchor = self._anchors.get(claim.generation)
        if anchor is None:
            raise NotAdmitted(
                Reason.UNKNOWN_KEY,
                f"the certificate is signed by generation {claim.generation} of the cluster's key, which does not "
                "count here (any more); join again with a token",
            )
        return verify(Certificate, statement, anchor)

    def _of_this_cluster(self, cluster: bytes) -> None:
        if cluster != self.cluster:
            raise NotAdmitted(
                Reason.OTHER_CLUSTER, f"this is cluster {self.cluster.hex()[:8]}, the key belongs to another one"
            )

    def check_member(self, member: bytes) -> None:
        if member in self._revoked:
            raise NotAdmitted(Reason.REVOKED, f"the key of member {member.hex()[:8]} was revoked")

    def issuer(self, statement: bytes) -> Certificate:
        found = self.certificate(statement)
        if not found.has(Role.METADATA):
            raise NotAdmitted(Reason.UNKNOWN_KEY, f"{found.name} is no metadata server: its word grants nothing")
        return found

    # ---- grants ---------------------------------------------------------------------------------------------

    def grant(self, statement: bytes, holder: Certificate) -> Grant:
        """Verified, alive, and the holder's own."""
        claim = peek(Grant, statement)
        self._of_this_cluster(claim.cluster)
        issuer = self.issuer(claim.issuer)
        found = verify(Grant, statement, PublicKey.load(issuer.public))
        if found.member != holder.member:
            raise NotAdmitted(Reason.UNKNOWN_KEY, "the grant belongs to another key")
        if found.expires_ns - found.issued_ns > GRANT_S * S:
            raise NotAdmitted(Reason.MALFORMED, f"a grant is for at most {GRANT_S} s")
        self.check_session(found.session)
        self.clock.at_least(found.issued_ns)
        if self.past(found.expires_ns):
            raise NotAdmitted(Reason.EXPIRED, "the grant has ended; the metadata server renews it with each heartbeat")
        return found

    def past(self, expires_ns: int, more_s: int = 0) -> bool:
        """By the metadata server's clock as last heard; unknown time is past everything."""
        now = self.clock.now_ns()
        return now is None or now >= expires_ns + more_s * S

    def check_session(self, session: int) -> None:
        if session in self._ended:
            raise NotAdmitted(Reason.SESSION_ENDED, f"session {session:016x} has ended")

    # ---- lists ----------------------------------------------------------------------------------------------

    def learn(self, statement: bytes) -> Revocations | None:
        """A metadata server's list: what is new in it counts from now on. None when a newer one is known."""
        claim = peek(Revocations, statement, LIST_MAX)
        self._of_this_cluster(claim.cluster)
        issuer = self.issuer(claim.issuer)
        found = verify(Revocations, statement, PublicKey.load(issuer.public), LIST_MAX)
        if found.version < self.version:
            return None
        self.clock.heard(found.now_ns)
        self.in_touch = True
        self._take(found, found.version)
        return found

    def recall(self, statement: bytes) -> None:
        """The list that an earlier process learnt and kept. Not its version: what the metadata server says now counts,
        even when it had to go back to an older database."""
        claim = peek(Revocations, statement, LIST_MAX)
        self._of_this_cluster(claim.cluster)
        issuer = self.issuer(claim.issuer)
        self._take(verify(Revocations, statement, PublicKey.load(issuer.public), LIST_MAX), self.version)

    def _take(self, found: Revocations, version: int) -> None:
        self.revoke(version, found.members)
        self.end_sessions(found.sessions)
        self.retire_until(found.retired)

    def revoke(self, version: int, members: Iterable[bytes]) -> None:
        self.version = max(self.version, version)
        self._revoked.update(members)

    def end_sessions(self, sessions: Iterable[int]) -> None:
        """Remembered as long as a grant of theirs may let anybody read."""
        now = self.clock.now_ns() or 0
        for session in [session for session, until in self._ended.items() if until <= now]:
            del self._ended[session]
        until = now + (GRANT_S + READS_GO_ON_S + SKEW_S) * S
        self._ended.update(dict.fromkeys(sessions, until))

    def fits_pin(self, pin: bytes) -> bool:
        return any(fingerprint(key.raw) == pin for key in self._anchors.values())

    @property
    def revoked(self) -> frozenset[bytes]:
        return frozenset(self._revoked)

    @property
    def ended(self) -> tuple[int, ...]:
        return tuple(self._ended)
