"""TLS options of the connection: encryption and certificates."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Tls:
    """TLS to the server; mutual TLS with a private key and its certificate.

        tls = Tls.from_files(root_certificates="ca.pem")
        with Recommender("recommender:8500", tls=tls) as recommender:
            recommendations = recommender.recommend("42")

    Raises:
        ValueError: a key without a certificate, a certificate without a key, or a str instead of PEM bytes.
    """

    root_certificates: bytes | None = None
    """PEM of the certificate authorities to trust; None for the public ones that gRPC ships."""
    private_key: bytes | None = field(default=None, repr=False)
    """PEM of this client's key, for servers that verify clients."""
    certificate_chain: bytes | None = None
    """PEM of this client's certificate, followed by the intermediate ones."""
    server_name: str | None = None
    """Name in the server's certificate if the target is another name or an address; None for the target's host."""

    def __post_init__(self) -> None:
        for name in ("root_certificates", "private_key", "certificate_chain"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, bytes):
                raise ValueError(
                    f"{name}: expected the bytes of a PEM file, got {type(value).__name__}; pass "
                    "Path(file).read_bytes(), or use Tls.from_files"
                )
        if (self.private_key is None) != (self.certificate_chain is None):
            given, missing = ("private_key", "certificate_chain")
            if self.private_key is None:
                given, missing = missing, given
            raise ValueError(f"{given} without {missing}; mutual TLS needs both, pass {missing} too or neither")

    @classmethod
    def from_files(
        cls,
        *,
        root_certificates: str | os.PathLike[str] | None = None,
        private_key: str | os.PathLike[str] | None = None,
        certificate_chain: str | os.PathLike[str] | None = None,
        server_name: str | None = None,
    ) -> Tls:
        """Read PEM files into a `Tls`, once.

        Raises:
            OSError: a file cannot be read.
            ValueError: as the class.
        """

        def read(path: str | os.PathLike[str] | None) -> bytes | None:
            return None if path is None else Path(path).read_bytes()

        return cls(read(root_certificates), read(private_key), read(certificate_chain), server_name)
