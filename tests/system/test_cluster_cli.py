"""trivium cluster: a key, tokens, joining, revoking, rotating, as an operator does it."""

from __future__ import annotations

import stat
from pathlib import Path

from tests.system.pool import SystemPool
from trivium.cluster.identity.keyfiles import load_cluster, load_identity


def test_init_join_revoke_rotate(pool: SystemPool) -> None:
    first = pool.trivium("cluster", "init", "--data", pool.data).stdout
    again = pool.trivium("cluster", "init", "--data", pool.data).stdout
    assert again in first and "fingerprint" in again, "a key is never made twice"
    pool.up("--drives", "3", "--profile", "1+1")
    keys = load_cluster(pool.data / "keys" / "cluster")
    assert keys.cluster.hex() in first and keys.keys[0].key.public.fingerprint.hex() in first
    for name in ("cluster", "node"):
        assert stat.S_IMODE((pool.data / "keys" / name).stat().st_mode) == 0o600

    token = pool.trivium("cluster", "token", "create", "--right", "read").stdout.strip()
    there = pool.work / "there"
    wrong = pool.trivium("cluster", "join", token[:-1], "--keys", there, check=False)
    assert wrong.returncode == 1 and "not copied whole" in wrong.stderr
    pool.trivium("cluster", "join", "-", "--keys", there, "--name", "alice", stdin=token.encode() + b"\n")
    identity = load_identity(there / "client")
    assert identity.cluster == keys.cluster and [path.name for path in there.iterdir()] == ["client"]
    used = pool.trivium("cluster", "join", token, "--keys", pool.work / "elsewhere", check=False)
    assert used.returncode == 1 and "ask for a new one" in used.stderr
    spare = pool.trivium("cluster", "token", "create").stdout.strip()
    listed = pool.trivium("cluster", "token", "ls").stdout.splitlines()
    open_id = next(line.split()[0] for line in listed if " used" not in line)
    pool.trivium("cluster", "token", "rm", open_id)
    assert pool.trivium("cluster", "join", spare, "--keys", pool.work / "e", check=False).returncode == 1

    pool.trivium("cluster", "rotate")
    assert "alice" in pool.trivium("cluster", "rotate", "--finish", check=False).stderr
    assert "revoked" in pool.trivium("cluster", "revoke", "alice").stdout
    pool.trivium("cluster", "rotate", "--finish")
    assert len(load_cluster(pool.data / "keys" / "cluster").keys) == 1
    pool.kill()
    pool.up_again()
    members = pool.trivium("cluster", "members").stdout
    assert "alice" in members and "revoked" in members and "key 2" in members
    fsck = pool.trivium("fsck").stdout
    assert "0 findings" in fsck
    _no_secret_in_the_log(pool, token)


def _no_secret_in_the_log(pool: SystemPool, token: str) -> None:
    text = Path(pool.data / "run" / "up.log").read_text()
    assert token not in text and "PRIVATE KEY" not in text


def test_a_pool_whose_cluster_key_is_gone_serves_on_and_lets_nobody_join(pool: SystemPool) -> None:
    pool.up("--drives", "3", "--profile", "1+1")
    pool.trivium("down")
    (pool.data / "keys" / "cluster").unlink()
    pool.up("--drives", "3")
    pool.boto().create_bucket(Bucket="bkt")
    refused = pool.trivium("cluster", "token", "create", check=False)
    assert refused.returncode == 1 and "restore it" in refused.stderr
    assert not (pool.data / "keys" / "cluster").exists(), "a second key would be another cluster's"
