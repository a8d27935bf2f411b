"""Deliberate faults: each a precise change of one place of the product (docs/mutations.md is made from this).

`tests` are narrower than the whole-cluster simulation; they run where its seeds notice nothing. A change of the
product may move the text that a mutation looks for: tests/unit/test_mutations.py says so at once.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Edit:
    module: str
    old: str  # occurs exactly once
    new: str


@dataclass(frozen=True, slots=True)
class Mutation:
    name: str
    what: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...] = ()


def one(name: str, what: str, module: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, what, (Edit(f"trivium.{module}", old, new),), tests)


MUTATIONS = (
    # ---- shards ----
    one("shard-not-synced", "a shard is answered without fdatasync", "cluster.store.shards",
        "        self._health.sync_data(fd, what)\n", ""),
    one("shard-name-not-synced", "a shard's name is answered without a folder sync", "cluster.store.shards",
        "                    self._write_new(folder, put, data)\n                folder.sync()\n",
        "                    self._write_new(folder, put, data)\n"),
    one("blocks-not-verified", "a shard's blocks are not compared with their CRCs", "cluster.shardfile",
        " or crc32c(part, seed) != crcs[block]:", ":",
        "tests/property/test_disk_formats.py"),
    one("nonce-ignored", "shards of another put of the same id are taken", "cluster.shardreader",
        "        or spec.nonce != placed.nonce\n", "",
        "tests/simulation/test_chunks_get.py"),
    one("existing-file-adopted", "healing takes a file that is in the place already for its own", "cluster.mover",
        "error is None or (isinstance(error, Exists) and await self._is_there(placed, target, index))",
        "error is None or isinstance(error, Exists)",
        "tests/simulation/test_mover_scrub.py"),
    one("shard-overwritten", "a put overwrites a shard that is there", "cluster.store.shards",
        "        if header.spec.plan_seq <= there.spec.plan_seq:\n", "        if False:\n",
        "tests/unit/test_store.py"),
    one("delete-ignores-plan", "a queued delete removes what was placed later", "cluster.store.shards",
        "if plan_seq is not None and plan_seq > delete.seq:", "if False:",
        "tests/unit/test_store.py"),
    # ---- puts and commits ----
    one("answer-at-k", "a put answers with k durable shards", "cluster.writer",
        "        return least(group.profile, *(", "        return group.k or least(group.profile, *(",
        "tests/simulation/test_chunks_put.py"),
    one("commit-below-k+1", "a commit is taken with fewer than k+1 shards left", "metadata.chunkrows",
        "return placement.least(group.profile, *pool)", "return 0 * placement.least(group.profile, *pool)",
        "tests/unit/test_engine_chunkrows.py"),
    one("missing-not-listed", "a put does not say which shards are missing", "cluster.writer",
        "draft.length, attempt.missing, kind)", "draft.length, 0, kind)",
        "tests/simulation/test_chunks_put.py"),
    one("gone-drives-count", "shards on drives that are out or removed count as present", "metadata.chunkrows",
        "new.missing | _mask_of_gone(tx, group)", "new.missing",
        "tests/simulation/test_scenarios.py::test_a_put_whose_drives_were_replaced_before_its_commit_is_put_again"),
    one("id-reused", "a session gives every fourth id twice", "metadata.counters",
        "        self._next += 1\n", "        self._next += counter % 4 > 0 or counter in self._unsettled\n"),
    one("floor-ignored", "a commit may name an id that its session has settled", "metadata.chunkrows",
        "    if settled:\n        raise", "    if False:\n        raise",
        "tests/unit/test_engine_chunkrows.py"),
    one("healing-forgets", "healing forgets the shards that it could not write", "cluster.mover",
        "        return sum(1 << index for index in wanted if index not in durable)\n", "        return 0\n",
        "tests/simulation/test_mover_scrub.py"),
    # ---- the log ----
    one("log-not-synced", "a log record is answered without fdatasync", "cluster.store.segment",
        "            self._zero_behind(end)\n            self._health.sync_data(self._fd, self._what)\n",
        "            self._zero_behind(end)\n"),
    one("append-after-seal", "a sealed log segment takes appends", "cluster.store.segment",
        "            if self.sealed:\n                raise Fenced",
        "            if False:\n                raise Fenced",
        "tests/simulation/test_log.py", "tests/simulation/test_store_crash.py"),
    one("seal-not-synced", "a seal is answered before its name is durable", "cluster.store.segment",
        "                    self._health.sync_folder(self._folder, \"folder log\")\n", "",
        "tests/simulation/test_store_crash.py"),
    one("some-replicas-suffice", "an append is answered when any replica has it", "cluster.log",
        "            if not errors:\n                return {}\n",
        "            if len(errors) < len(entry.drives):\n                return {}\n",
        "tests/simulation/test_log.py"),
    # Not here: log records that need not continue the hash chain (cluster.logfile, scan). It changes nothing that can
    # be seen: records of a segment verify only under its id, only its one writer knows where they go, their bytes never
    # change once they were sent, and who takes a log over writes to a new segment. So whatever has the right seq and
    # verifies is the right record; the comparison finds faults of the program itself (tests/unit/test_log.py).
    one("takeover-closes-late", "a takeover records that all replicas hold what one of them holds", "cluster.logplan",
        "return Keep(min(state.last_seq for", "return Keep(max(state.last_seq for",
        "tests/simulation/test_log.py"),
    one("replay-chain-unchecked", "replay does not compare the chain's hashes", "metadata.replay",
        "and (record.seq != seq + 1 or record.previous_hash != chain_hash):", "and record.seq != seq + 1:",
        "tests/unit/test_engine_replay.py"),
    one("ack-before-log", "a call is answered before its record is durable", "metadata.writer",
        "        try:\n            if batch.patchset:\n",
        "        self._answer(batch)\n        batch = _Batch([], [], batch.patchset)\n"
        "        try:\n            if batch.patchset:\n"),
    one("wiped-log-unnoticed", "an append does not look whether the log file still has its name",
        "cluster.store.segment",
        "            self._health.sync_data(self._fd, self._what)\n            self._still_named()\n        shift",
        "            self._health.sync_data(self._fd, self._what)\n        shift",
        "tests/unit/test_store.py", "tests/unit/test_log.py"),
    one("root-without-majority", "one promise is enough to hold the root", "cluster.root",
        "                if not rootplan.has_majority(promised, root):\n", "                if not promised:\n",
        "tests/simulation/test_root.py", "tests/unit/test_root.py"),
    # ---- recovery ----
    one("older-database-taken", "a local database that is behind the log is served", "metadata.recovery",
        "    if state == (metalog.last_seq, metalog.last_hash):\n", "    if state[0] <= metalog.last_seq:\n"),
    # ---- collecting ----
    Mutation("collect-unchecked", "the collector trusts its first look alone, and that ignores references", (
        Edit("trivium.metadata.queue", "if row is None or is_referenced(tx, chunk) or not", "if row is None or not"),
        Edit("trivium.metadata.collector", "if row[2] and row[3]]", "if row[2]]"))),
    one("no-second-check", "what gained a reference since the collector's first look is queued", "metadata.queue",
        "if row is None or is_referenced(tx, chunk) or not", "if row is None or not",
        "tests/unit/test_metadata_collecting.py"),
    one("unsettled-orphans", "files of puts that are still to commit are orphans", "metadata.queue",
        "    if row is None and not is_settled(tx, chunk):\n", "    if False:\n",
        "tests/unit/test_metadata_collecting.py"),
    one("readers-not-waited-for", "deletes do not wait for reads in progress", "metadata.collect_loop",
        "        before = self._oldest_read_seq() + 1 if self._oldest_read_seq() else NEVER\n",
        "        before = NEVER\n",
        "tests/simulation/test_scenarios.py::test_a_read_of_an_hour_outlives_the_overwrite_of_its_object"),
    one("away-deletes-done", "deletes on drives that are away count as done", "metadata.collect_loop",
        "            if outcome.error() is None:\n                done", "            if True:\n                done",
        "tests/simulation/test_scenarios.py::test_a_drive_that_was_away_brings_nothing_back"),
    # ---- sessions ----
    one("late-copies-run", "a late copy of an older call is executed", "metadata.sessions",
        "    if number < slot.number:\n", "    if False:\n",
        "tests/simulation/test_engine_sessions.py"),
    one("repeats-run", "a repeated call is executed again", "metadata.sessions",
        "    if number == slot.number:\n        return slot\n", "",
        "tests/simulation/test_engine_sessions.py"),
    one("reclaim-after-end", "a session that is being ended goes on", "metadata.sessions",
        "        if found is None or found.ending:\n            raise", "        if found is None:\n            raise",
        "tests/simulation/test_session_ends.py"),
    one("end-leaves-its-row", "the end of a session leaves its row", "metadata.server",
        "                tx.run(\"DELETE FROM sessions WHERE id = ?\", id)\n", ""),
)  # fmt: skip
