"""The operator's commands as the metadata server answers them (messages.Admin)."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import apsw

from trivium.admin import drivecommands, drivelife, losscommand, report
from trivium.admin.joining import Joining
from trivium.admin.processes import drives
from trivium.metadata import losses, mapsettings
from trivium.metadata.digest import digest
from trivium.metadata.messages import Credential, MetadataError, SetCredential

if TYPE_CHECKING:
    from trivium.admin.processes.lead import Leader

Command = Callable[[dict[str, Any]], Coroutine[Any, Any, Any]]


def register_commands(leader: Leader, endpoints: dict[str, str]) -> None:
    """Make them known to the server. `endpoints` is what this process listens on."""
    commands = Commands(leader, endpoints)
    leader.server.admin_commands.update(
        {
            "status": commands.status,
            "heal": commands.heal,
            "endpoints": commands.endpoints,
            "credential_root": commands.credential_root,
            "credential_list": commands.credential_list,
            "credential_set": commands.credential_set,
            "drive_replace": commands.drive_replace,
            "drive_add": commands.drive_add,
            "drive_drain": commands.drive_drain,
            "drive_drain_report": commands.drive_drain_report,
            "drive_drain_cancel": commands.drive_drain_cancel,
            "drive_remove": commands.drive_remove,
            "drive_weight": commands.drive_weight,
            "drive_in": commands.drive_in,
            "maintenance": commands.maintenance,
            "metadata_copy": commands.metadata_copy,
            "digest": commands.digest,
            "fsck": commands.fsck,
            "lost": commands.lost,
            "dump": commands.dump,
            "metadata_confirm": commands.metadata_confirm,
            "scrub": commands.scrub,
            **Joining(leader).commands(),
            **leader.identity.commands(),
        }
    )


class Commands:
    def __init__(self, leader: Leader, endpoints: dict[str, str]) -> None:
        self._leader, self._endpoints = leader, endpoints

    async def status(self, arguments: dict[str, Any]) -> Any:
        await self._leader.substrate.watch.refresh()
        return await self._leader.status()

    async def heal(self, arguments: dict[str, Any]) -> Any:
        self._leader.upkeep.healer.changed()
        return await self._leader.upkeep.healer.report()

    async def endpoints(self, arguments: dict[str, Any]) -> Any:
        return self._endpoints

    async def credential_root(self, arguments: dict[str, Any]) -> Any:
        found = await self._leader.root_credential()
        return {"access_key": found.access_key, "secret_key": found.secret_key}

    async def credential_list(self, arguments: dict[str, Any]) -> Any:
        rows = await self._leader.read(
            lambda reader: reader.all(
                "SELECT access_key, user, bucket, root FROM credentials ORDER BY user, access_key"
            )
        )
        return [dict(zip(("access_key", "user", "bucket", "root"), row, strict=True)) for row in rows]

    async def credential_set(self, arguments: dict[str, Any]) -> Any:
        wanted = Credential(arguments["access_key"], arguments["secret_key"], arguments["user"], arguments["bucket"])
        if wanted.access_key == (await self._leader.root_credential()).access_key:
            raise MetadataError("EPERM", "the root credential is set by TRIVIUM_ROOT_USER and TRIVIUM_ROOT_PASSWORD")
        if not wanted.secret_key and all(
            row["access_key"] != wanted.access_key for row in await self.credential_list({})
        ):
            raise MetadataError("ENOENT", f"there is no credential {wanted.access_key}; trivium credential ls has them")
        await self._leader.client.call(SetCredential(wanted))
        self._leader.on_credential(wanted.access_key)
        return None

    async def drive_replace(self, arguments: dict[str, Any]) -> Any:
        return await drivecommands.replace_drive(self._leader, arguments["name"], arguments["path"])

    async def drive_add(self, arguments: dict[str, Any]) -> Any:
        leader = self._leader
        name = arguments["name"] or drivecommands.next_name(leader)
        path, node = arguments["path"], arguments.get("node", "")
        if not node:
            path = drives.relative(leader.data, path) if path else f"drives/{name}"
        row = await drivecommands.add_drive(leader, name, path, node)
        return {"name": name, "path": path if node else drives.absolute(leader.data, path), "id": row.id.hex()}

    async def drive_drain(self, arguments: dict[str, Any]) -> Any:
        return await drivelife.drain_drive(self._leader, arguments["name"])

    async def drive_drain_report(self, arguments: dict[str, Any]) -> Any:
        return await drivelife.drain_report(self._leader, arguments["name"])

    async def drive_drain_cancel(self, arguments: dict[str, Any]) -> Any:
        return await drivelife.cancel_drain(self._leader, arguments["name"])

    async def drive_remove(self, arguments: dict[str, Any]) -> Any:
        answer = await drivelife.remove_drive(self._leader, arguments["name"])
        return {"path": drives.absolute(self._leader.data, answer["path"])}

    async def drive_weight(self, arguments: dict[str, Any]) -> Any:
        return await drivelife.set_weight(self._leader, arguments["name"], float(arguments["weight"]))

    async def drive_in(self, arguments: dict[str, Any]) -> Any:
        return await drivelife.in_again(self._leader, arguments["name"])

    async def maintenance(self, arguments: dict[str, Any]) -> Any:
        """`seconds`: 0 off, -1 until it is turned off, None: only say. Answers the sentence."""
        clock = self._leader.substrate.clock
        seconds = arguments.get("seconds")
        if seconds is not None:
            until = clock.wall_ns() + int(seconds * 1e9) if seconds > 0 else mapsettings.FOREVER if seconds else 0
            await drivelife.set_maintenance(self._leader, until)
        until = self._leader.server.map.maintenance_until
        return {"text": report.maintenance_text(until, clock.wall_ns()), "until_ns": until}

    async def metadata_copy(self, arguments: dict[str, Any]) -> Any:
        """A snapshot into a new file, mode 0600, for a process of its own to look into."""
        path = arguments["path"]
        source = str(self._leader.data.metadata / "trivium.db")
        await self._leader.substrate.executor.run(_copy, source, path)
        return None

    async def digest(self, arguments: dict[str, Any]) -> Any:
        source = str(self._leader.data.metadata / "trivium.db")
        seq, found = await self._leader.substrate.executor.run(_digest, source)
        return {"seq": seq, "digest": found}

    async def fsck(self, arguments: dict[str, Any]) -> Any:
        return await self._leader.upkeep.fsck(bool(arguments.get("drives", True)))

    async def lost(self, arguments: dict[str, Any]) -> Any:
        return await losscommand.report(self._leader)

    async def scrub(self, arguments: dict[str, Any]) -> Any:
        """Begin a pass (`start`), or say how far it is."""
        if arguments.get("start"):
            self._leader.upkeep.scrubbing.now()
        return self._leader.upkeep.scrubbing.report()

    async def metadata_confirm(self, arguments: dict[str, Any]) -> Any:
        """Answers how many chunks cannot be read, and does nothing when there are any but for `anyway`."""
        usable = self._leader.substrate.watch.usable()
        lost = await self._leader.read(lambda reader: losses.lost_chunks(reader, usable))
        count = len(lost.lost) + len(lost.away)
        if not self._leader.unconfirmed:
            return {"done": False, "unreadable": count, "was": ""}
        was = self._leader.unconfirmed
        done = (not count or bool(arguments.get("anyway"))) and await self._leader.confirm_rebuilt()
        return {"done": done, "unreadable": count, "was": was}

    async def dump(self, arguments: dict[str, Any]) -> Any:
        return await self._leader.upkeep.dump_now()


def _copy(source: str, target: str) -> None:
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    database = apsw.Connection(source, flags=apsw.SQLITE_OPEN_READONLY)
    try:
        database.execute("VACUUM INTO ?", (target,))
    finally:
        database.close()


def _digest(source: str) -> tuple[int, str]:
    from trivium.metadata.database import applied

    database = apsw.Connection(source, flags=apsw.SQLITE_OPEN_READONLY)
    try:
        database.execute("BEGIN")
        return applied(database)[0], digest(database).hex()
    finally:
        database.close()
