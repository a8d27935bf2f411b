from __future__ import annotations

import json
from typing import Any

import click

from trivium.admin.cli.connect import admin_call, connect_option, open_pool, run
from trivium.admin.datadir import DataDir
from trivium.admin.errors import CommandError


@click.command()
@click.option("--drives/--no-drives", default=True, help="Also compare with what is on the drives.")
@click.option("--lost", "lost", is_flag=True, help="Name what cannot be read: files, objects, ranges of volumes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@connect_option
def fsck(drives: bool, lost: bool, as_json: bool, data: DataDir) -> None:
    """Prove the pool's invariants, and say what would be repaired. Changes nothing.

    Exits with 0 when nothing was found, with 6 when something was. With --lost it names instead what more drives than
    parity covers took with them; all that is not named there stays readable.
    """
    if lost:
        _lost(data, as_json)
        return

    async def work() -> list[dict[str, str]]:
        found: list[dict[str, str]] = await admin_call(data, "fsck", drives=drives)
        return found

    findings = run(work)
    if as_json:
        click.echo(json.dumps({"findings": findings}, indent=1))
    else:
        for finding in findings:
            click.echo(
                f"{finding['what']}: {finding['text']}"
                + (f"  repair: {finding['repair']}" if finding.get("repair") else "")
            )
        click.echo(f"fsck: {len(findings)} finding{'' if len(findings) == 1 else 's'}")
    if findings:
        raise CommandError("the pool is not clean", 6)


def _lost(data: DataDir, as_json: bool) -> None:
    async def work() -> dict[str, Any]:
        from trivium.admin.losscommand import volume_ranges
        from trivium.cluster.model import ChunkId

        report: dict[str, Any] = await admin_call(data, "lost")
        for which in ("lost", "away"):
            chunks = frozenset(ChunkId(*pair) for pair in report[f"{which}_chunks"])
            hit = [loss for loss in report[which] if loss["kind"] == "volume"]
            if hit:
                async with open_pool(data) as pool:
                    for loss in hit:
                        found = await volume_ranges(pool, loss["name"], chunks)
                        loss["text" if isinstance(found, str) else "ranges"] = found
        return report

    report = run(work)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        for which, said in (("lost", "lost"), ("away", "away until its drives come back")):
            for loss in report[which]:
                spans = ", ".join(f"{start} to {start + length - 1}" for start, length in loss["ranges"])
                where = loss.get("text") or (f"bytes {spans}" if spans else "nothing that is mapped")
                click.echo(f"{loss['kind']} {loss['name']}: {where}: {said}")
        counts = f"{len(report['lost_chunks'])} chunks lost, {len(report['away_chunks'])} away"
        click.echo(f"{counts}: {len(report['lost'])} and {len(report['away'])} names")
    if report["lost_chunks"] or report["away_chunks"]:
        raise CommandError("some bytes cannot be read", 6)
