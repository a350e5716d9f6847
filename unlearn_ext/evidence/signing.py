"""Detached Ed25519 signatures: 64 bytes over the bytes of ``evidence.json``, as OpenSSL also writes and checks them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError, require
from .record import Sign

__all__ = ["is_signed_by", "signer"]

_MAKE = "make one with `openssl genpkey -algorithm ed25519 -out key.pem`"


def signer(key: Path, password: Callable[[], str]) -> Sign:
    """Return a function that signs bytes with a private key.

    Args:
        key: PEM file with an Ed25519 private key.
        password: called if the key is encrypted; returns its password.

    Raises:
        UserError: the library is not installed, the file cannot be read, the password is wrong, or the key is of
            another kind.
    """
    serialization, ed25519 = _library()
    content = _read(key)

    def loaded(given: bytes | None) -> Any:
        return serialization.load_pem_private_key(content, given)

    try:
        try:
            private = loaded(None)
        except TypeError:  # the key is encrypted
            private = loaded(password().encode())
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{key} cannot be used to sign: it is no private key in PEM, or its password is wrong."
        ) from error
    except require("cryptography.exceptions", "evidence").UnsupportedAlgorithm as error:
        raise UserError(f"{key} cannot be used to sign: {error}; {_MAKE}.") from error
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise UserError(f"{key} is not an Ed25519 key; {_MAKE}.")
    return private.sign


def is_signed_by(public_key: Path, signature: bytes, content: bytes) -> bool:
    """Return whether a signature of some bytes was made with the private key that belongs to a public key.

    Args:
        public_key: PEM file with an Ed25519 public key.
        signature: the signature.
        content: the bytes that were signed.

    Raises:
        UserError: the library is not installed, the file cannot be read, or the key is of another kind.
    """
    serialization, ed25519 = _library()
    exceptions = require("cryptography.exceptions", "evidence")
    try:
        public = serialization.load_pem_public_key(_read(public_key))
    except (ValueError, exceptions.UnsupportedAlgorithm) as error:
        raise UserError(
            f"{public_key} is no public key in PEM: `openssl pkey -in key.pem -pubout -out public.pem` writes it."
        ) from error
    if not isinstance(public, ed25519.Ed25519PublicKey):
        raise UserError(f"{public_key} is not an Ed25519 key; {_MAKE}.")
    try:
        public.verify(signature, content)
    except exceptions.InvalidSignature:
        return False
    return True


def _library() -> tuple[Any, Any]:
    return (
        require("cryptography.hazmat.primitives.serialization", "evidence"),
        require("cryptography.hazmat.primitives.asymmetric.ed25519", "evidence"),
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"the key {path} cannot be read: {error.strerror}.") from error
