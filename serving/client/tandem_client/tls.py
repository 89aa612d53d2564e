"""How the connection is encrypted, and who the two ends are to each other."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Tls:
    """TLS to the server; mutual TLS where a private key and its certificate are given.

    Attributes:
        root_certificates: PEM of the authorities that the server's certificate may come from; None for the public ones
            that gRPC carries.
        private_key: PEM of this client's key, for servers that ask who is calling.
        certificate_chain: PEM of this client's certificate, followed by those of the authorities in between.
        server_name: the name in the server's certificate, where the target is called something else, such as an
            address; None for the target's host.

    Raises:
        ValueError: a key without a certificate or the other way round, or text where PEM bytes were wanted.
    """

    root_certificates: bytes | None = None
    private_key: bytes | None = field(default=None, repr=False)
    certificate_chain: bytes | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        for name in ("root_certificates", "private_key", "certificate_chain"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, bytes):
                raise ValueError(
                    f"{name} is {type(value).__name__}, wanted the bytes of a PEM file; pass "
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
        """The same from PEM files, read once, now.

        Raises:
            OSError: a file that cannot be read.
            ValueError: as the class.
        """

        def read(path: str | os.PathLike[str] | None) -> bytes | None:
            return None if path is None else Path(path).read_bytes()

        return cls(read(root_certificates), read(private_key), read(certificate_chain), server_name)
