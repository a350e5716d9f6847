"""Detached signatures of evidence.json."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from unlearn_ext import UserError
from unlearn_ext.evidence.signing import is_signed_by, signer

MESSAGE = b'{"sha256": "..."}\n'


def keys(folder: Path, private: Any, password: bytes | None = None) -> tuple[Path, Path]:
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    paths = folder / "key.pem", folder / "public.pem"
    paths[0].write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, how))
    paths[1].write_bytes(private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return paths


def no_password() -> str:
    raise AssertionError("the key is not encrypted")


def test_a_signature_is_that_of_these_bytes_and_this_key(tmp_path: Path) -> None:
    key, public = keys(tmp_path, ed25519.Ed25519PrivateKey.generate())
    signature = signer(key, no_password)(MESSAGE)
    assert is_signed_by(public, signature, MESSAGE)
    assert not is_signed_by(public, signature, MESSAGE + b" ")
    assert not is_signed_by(public, signature[:-1] + bytes([signature[-1] ^ 1]), MESSAGE)
    assert not is_signed_by(public, b"", MESSAGE)
    (tmp_path / "other").mkdir()
    _, other = keys(tmp_path / "other", ed25519.Ed25519PrivateKey.generate())
    assert not is_signed_by(other, signature, MESSAGE)


def test_an_encrypted_key(tmp_path: Path) -> None:
    key, public = keys(tmp_path, ed25519.Ed25519PrivateKey.generate(), b"secret")
    assert is_signed_by(public, signer(key, lambda: "secret")(MESSAGE), MESSAGE)
    with pytest.raises(UserError, match="its password is wrong"):
        signer(key, lambda: "guess")


def test_keys_that_cannot_be_used(tmp_path: Path) -> None:
    key, public = keys(tmp_path, rsa.generate_private_key(65537, 2048))
    with pytest.raises(UserError, match="is not an Ed25519 key"):
        signer(key, no_password)
    with pytest.raises(UserError, match="is not an Ed25519 key"):
        is_signed_by(public, b"", MESSAGE)
    with pytest.raises(UserError, match=r"key\.pem is no public key in PEM"):
        is_signed_by(key, b"", MESSAGE)
    with pytest.raises(UserError, match=r"public\.pem cannot be used to sign: it is no private key"):
        signer(public, no_password)
    with pytest.raises(UserError, match=r"the key .* cannot be read: No such file"):
        signer(tmp_path / "nothing", no_password)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the program openssl")
def test_openssl_checks_our_signature_and_we_check_its(tmp_path: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)

    openssl("genpkey", "-algorithm", "ed25519", "-out", "key.pem")
    openssl("pkey", "-in", "key.pem", "-pubout", "-out", "public.pem")
    (tmp_path / "evidence.json").write_bytes(MESSAGE)
    (tmp_path / "ours.sig").write_bytes(signer(tmp_path / "key.pem", no_password)(MESSAGE))
    of = ("-rawin", "-in", "evidence.json")
    openssl("pkeyutl", "-verify", "-pubin", "-inkey", "public.pem", *of, "-sigfile", "ours.sig")
    openssl("pkeyutl", "-sign", "-inkey", "key.pem", *of, "-out", "theirs.sig")
    assert is_signed_by(tmp_path / "public.pem", (tmp_path / "theirs.sig").read_bytes(), MESSAGE)


def test_without_the_library_one_sentence_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for call in (lambda: signer(tmp_path / "key", no_password), lambda: is_signed_by(tmp_path / "key", b"", b"")):
        with pytest.raises(UserError, match="cryptography is not installed; it comes with the extra `evidence`"):
            call()
