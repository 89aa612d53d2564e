"""Errors of the server's configuration. They import nothing, so that every module of `serving` may raise them."""

from __future__ import annotations


class ConfigError(Exception):
    """A configuration that TensorFlow Serving rejects; the message is TensorFlow Serving's where it has one."""


class ConfigFileError(ConfigError):
    """A configuration file that cannot be read, or whose values are rejected; the message names the file."""
