"""Signatures of bundles: Ed25519 over the bytes of manifest.json, which holds the hash of every other file.

openssl genpkey -algorithm ed25519 -out key.pem     # stays with who promotes
openssl pkey -in key.pem -pubout -out key.pub       # goes to who serves
"""

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING

from mtlops.errors import ArtefactError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


class Signer:
    """Signs. Raises UsageError when the file holds no Ed25519 key in PEM, or `cryptography` is not installed."""

    def __init__(self, path: Path) -> None:
        self._key = _private_key(path)

    def sign(self, content: bytes) -> bytes:
        """Returns the signature of bytes, in base64."""
        return base64.b64encode(self._key.sign(content))


class Verifier:
    """Checks signatures. Raises UsageError when the file holds no Ed25519 public key in PEM, or as `Signer`."""

    def __init__(self, path: Path) -> None:
        self._path, self._key = path, _public_key(path)

    def check(self, content: bytes, signature: bytes | None, *, where: str) -> None:
        """Checks the signature of bytes.

        Raises:
            ArtefactError: there is none, or it is not of this key.
        """
        from cryptography.exceptions import InvalidSignature

        if signature is None:
            raise ArtefactError(f"{where}: is not signed. Promote it with `mtlops promote --sign KEY`.")
        try:
            self._key.verify(base64.b64decode(signature, validate=True), content)
        except (InvalidSignature, binascii.Error):
            raise ArtefactError(
                f"{where}: its signature is not of the key {self._path}. Promote one that is."
            ) from None


def _private_key(path: Path) -> "Ed25519PrivateKey":
    content = _read(path)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(
            f"{path}: holds no Ed25519 key in PEM, without a password: `openssl genpkey -algorithm ed25519`."
        )
    return key


def _public_key(path: Path) -> "Ed25519PublicKey":
    content = _read(path)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path}: holds no Ed25519 public key in PEM. `openssl pkey -in KEY -pubout`.")
    return key


def _read(path: Path) -> bytes:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise UsageError("cryptography is not installed. Install `mtlops[sign]`.") from None
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from None
