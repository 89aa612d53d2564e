"""TLS and mutual TLS from TensorFlow Serving's `--ssl_config_file` (text proto `SSLConfig` with PEM texts).

TensorFlow Serving encrypts gRPC only; this server uses the certificate for REST, too, so that no port is unencrypted.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from dataclasses import dataclass

import grpc

from serving.config.errors import ConfigFileError
from serving.config.server_config_pb2 import SSLConfig
from serving.config.text_proto import read_text_proto


@dataclass(frozen=True)
class Tls:
    """The server's key and certificate, and the verification of clients."""

    server_key: str
    """Private key, PEM."""
    server_cert: str
    """Certificate chain, PEM."""
    custom_ca: str = ""
    """Certificate authorities that verify clients, PEM; "" for the system's."""
    client_verify: bool = False
    """Require a valid client certificate."""

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Tls:
        """Read an SSL config file.

        Raises:
            ConfigFileError: the file cannot be read, has no key or certificate, or they do not match.
        """
        message = read_text_proto(path, SSLConfig())
        for field in ("server_key", "server_cert"):
            if not getattr(message, field):
                raise ConfigFileError(f"{path}: {field} is missing; expected a PEM text with '\\n' between its lines")
        if message.client_verify and not message.custom_ca:
            raise ConfigFileError(
                f"{path}: client_verify without custom_ca; set custom_ca to the PEM text of the authority that signed "
                "the clients' certificates"
            )
        tls = cls(message.server_key, message.server_cert, message.custom_ca, message.client_verify)
        try:
            tls.ssl_context()
        except (ssl.SSLError, ValueError) as error:
            raise ConfigFileError(
                f"{path}: expected PEM texts that match in server_key, server_cert and custom_ca: {error}"
            ) from error
        return tls

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Return the credentials of the gRPC port."""
        return grpc.ssl_server_credentials(
            [(self.server_key.encode(), self.server_cert.encode())],
            root_certificates=self.custom_ca.encode() or None,
            require_client_auth=self.client_verify,
        )

    def ssl_context(self) -> ssl.SSLContext:
        """Return the SSL context of the REST port.

        Raises:
            ssl.SSLError: a text is not PEM, or the key is not the certificate's.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        # OpenSSL reads certificate chains from files only. Only this user can read the temporary file.
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(f"{self.server_key.strip()}\n{self.server_cert.strip()}\n")
            file.flush()
            context.load_cert_chain(file.name)
        if self.custom_ca:
            context.load_verify_locations(cadata=self.custom_ca)
        if self.client_verify:
            context.verify_mode = ssl.CERT_REQUIRED
        return context
