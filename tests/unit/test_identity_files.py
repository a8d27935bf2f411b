"""Key files: only the owner reads them, they appear whole, and what cannot be trusted is refused."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest

from tests.fakes.identities import Authority
from trivium.admin.identity import make_cluster_keys
from trivium.cluster.errors import NotFound
from trivium.cluster.identity import certificates, keyfiles, messages
from trivium.cluster.identity.joining import check
from trivium.cluster.identity.keys import PrivateKey
from trivium.cluster.identity.refusals import NotAdmitted
from trivium.cluster.identity.statements import Handover, Role, sign
from trivium.cluster.identity.tokens import JoinToken, make


def test_files_are_for_the_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    keys = make_cluster_keys(b"c" * 16)
    old = os.umask(0)
    try:
        keyfiles.save_cluster(tmp_path / "cluster", keys)
        keyfiles.save_cluster(tmp_path / "cluster", keys)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "cluster").stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["cluster"], "no temporary file is left"
    loaded = keyfiles.load_cluster(tmp_path / "cluster")
    assert loaded.keys[0].key.private_pem() == keys.keys[0].key.private_pem()
    assert loaded.keys[0].certificate == keys.keys[0].certificate


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keyfiles.write_secret(tmp_path / "key", b"old")

    def fails(fd: int) -> None:
        raise OSError(28, "no space")

    with monkeypatch.context() as patched:
        patched.setattr(keyfiles.os, "fsync", fails)
        with pytest.raises(OSError):
            keyfiles.write_secret(tmp_path / "key", b"new")
    assert keyfiles.read_secret(tmp_path / "key") == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_others_may_read_or_is_no_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(NotFound):
        keyfiles.read_secret(path)
    keyfiles.write_secret(path, b"{}")
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        with pytest.raises(NotAdmitted, match="can be read by others"):
            keyfiles.read_secret(path)
    path.chmod(0o600)
    with pytest.raises(NotAdmitted):
        keyfiles.load_cluster(path)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError):
        keyfiles.read_secret(tmp_path / "link")
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(NotAdmitted):
        keyfiles.read_secret(tmp_path / "fifo")


def test_every_flipped_byte_of_a_key_file_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "cluster"
    keyfiles.save_cluster(path, make_cluster_keys(b"c" * 16))
    good = path.read_bytes()
    for at in range(0, len(good), 7):
        path.write_bytes(good[:at] + bytes((good[at] ^ 0x41,)) + good[at + 1 :])
        try:
            keyfiles.load_cluster(path)
        except NotAdmitted:
            continue


def test_nothing_secret_is_shown_or_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    keys = make_cluster_keys(b"c" * 16)
    keyfiles.save_cluster(tmp_path / "cluster", keys)
    identity = keyfiles.Identity(b"c" * 16, PrivateKey.generate(), b"statement", ())
    shown = f"{keys!r} {keys} {identity!r} {caplog.text}"
    for pem in (keys.keys[0].key.private_pem(), identity.key.private_pem()):
        assert pem.decode().splitlines()[1][:20] not in shown


def answered(authority: Authority, key: PrivateKey) -> messages.Joined:
    anchors = ((1, certificates.cluster_certificate(authority.key, authority.cluster, 1)),)
    return messages.Joined(authority.cluster, authority.member(key=key).statement, b"", anchors)


def test_a_joiner_believes_only_the_key_that_its_token_pins() -> None:
    authority, impostor, key = Authority(), Authority(), PrivateKey.generate()
    token = make(authority.key.public.fingerprint)
    assert check(answered(authority, key), token, key).cluster == authority.cluster
    for wrong in (answered(impostor, key), answered(authority, PrivateKey.generate())):
        with pytest.raises(NotAdmitted):
            check(wrong, token, key)


def test_a_token_made_before_a_rotation_still_works_and_a_stolen_succession_does_not() -> None:
    authority, key, token = Authority(), PrivateKey.generate(), None
    token = JoinToken(authority.key.public.fingerprint[:16], b"s" * 16)
    old, new = authority.key, PrivateKey.generate()
    pems = tuple(
        (number, certificates.cluster_certificate(k, authority.cluster, number)) for number, k in ((1, old), (2, new))
    )
    authority.key, authority.generation = new, 2
    statement = authority.member(key=key).statement
    for signer, good in ((old, True), (new, False), (PrivateKey.generate(), False)):
        handover = sign(signer, Handover(authority.cluster, 2, new.public.raw))
        answer = messages.Joined(authority.cluster, statement, b"", pems, (handover,))
        if good:
            assert check(answer, token, key).anchors == pems
        else:
            with pytest.raises(NotAdmitted):
                check(answer, token, key)


def test_a_servers_certificate_says_what_it_is() -> None:
    authority = Authority()
    node = authority.member(Role.NODE)
    pem = certificates.server_certificate(authority.key, authority.cluster, 1, node.key.public.raw, (Role.NODE,))
    found = certificates.verify_server(certificates.der_of(pem), [authority.key.public], Role.NODE)
    assert (found.cluster, found.member) == (authority.cluster, node.certificate.member)
    with pytest.raises(NotAdmitted):
        certificates.verify_server(certificates.der_of(pem), [authority.key.public], Role.METADATA)
    with pytest.raises(NotAdmitted):
        certificates.verify_server(certificates.der_of(pem), [Authority().key.public])
