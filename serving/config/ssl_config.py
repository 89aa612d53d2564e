"""TLS and mutual TLS, from TensorFlow Serving's `--ssl_config_file` (text proto `SSLConfig`, PEM texts inside it).

TensorFlow Serving secures gRPC alone; here the same certificate secures REST, too: a port in clear text beside it would
give away what the other hides.
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
    """What the server shows and what it asks of clients.

    Attributes:
        server_key: private key, PEM.
        server_cert: certificate chain, PEM.
        custom_ca: certificates that clients' certificates are checked against, PEM; "" for the system's.
        client_verify: clients must show a valid certificate.
    """

    server_key: str
    server_cert: str
    custom_ca: str = ""
    client_verify: bool = False

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Tls:
        """Reads an SSL config file.

        Raises:
            ConfigFileError: not readable, without key or certificate, or with ones that do not fit together.
        """
        message = read_text_proto(path, SSLConfig())
        for field in ("server_key", "server_cert"):
            if not getattr(message, field):
                raise ConfigFileError(f"{path}: {field} is missing; put the PEM text there, '\\n' between its lines")
        if message.client_verify and not message.custom_ca:
            raise ConfigFileError(
                f"{path}: client_verify without custom_ca; put the PEM text of the authority that signed the clients' "
                "certificates into custom_ca"
            )
        tls = cls(message.server_key, message.server_cert, message.custom_ca, message.client_verify)
        try:
            tls.ssl_context()
        except (ssl.SSLError, ValueError) as error:
            raise ConfigFileError(
                f"{path}: server_key, server_cert and custom_ca are not PEM texts that fit together: {error}"
            ) from error
        return tls

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For the gRPC port."""
        return grpc.ssl_server_credentials(
            [(self.server_key.encode(), self.server_cert.encode())],
            root_certificates=self.custom_ca.encode() or None,
            require_client_auth=self.client_verify,
        )

    def ssl_context(self) -> ssl.SSLContext:
        """For the REST port.

        Raises:
            ssl.SSLError: texts that are not PEM, or a key that is not the certificate's.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        # OpenSSL reads a chain from files only. mkstemp's are readable by this user alone.
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(f"{self.server_key.strip()}\n{self.server_cert.strip()}\n")
            file.flush()
            context.load_cert_chain(file.name)
        if self.custom_ca:
            context.load_verify_locations(cadata=self.custom_ca)
        if self.client_verify:
            context.verify_mode = ssl.CERT_REQUIRED
        return context
