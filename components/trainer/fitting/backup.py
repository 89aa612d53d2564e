"""Backups of a training, from which an interrupted Trainer resumes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from components.trainer.data.training_data import TrainingData
from recipe.trainer import TrainerRecipe

BACKUPS = "unfinished"
"""Folder beside the Trainer's model runs with the backups of interrupted trainings."""
BACKUP_SECONDS = 20.0
"""Minimum time between two backups, so that short epochs have none each. A resumed training repeats about this time, or
one epoch."""
BACKUP_DAYS = 7
"""Age after which the next completed training removes a backup."""


class Backup(tf.keras.callbacks.BackupAndRestore):
    """Keras's `BackupAndRestore` with at most one backup per `BACKUP_SECONDS`, which is kept after training."""

    def __init__(self, backup_dir: str) -> None:
        """
        Args:
            backup_dir: Folder of the backup.
        """
        super().__init__(backup_dir, delete_checkpoint=False)
        self._written = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write a backup if the last one is old enough."""
        if time.monotonic() - self._written >= BACKUP_SECONDS:
            super().on_epoch_end(epoch, logs)
            self._written = time.monotonic()


def fingerprint(recipe: TrainerRecipe, data: TrainingData, code: str) -> str:
    """Return a hash of everything that a training depends on; trainings with equal hashes can resume each other.

    Args:
        recipe: The recipe; its section `serving` does not affect training.
        data: The train split.
        code: Hash of the code.

    Example:
        >>> fingerprint(recipe, data, code="1") == fingerprint(recipe, data, code="2")
        False
    """
    digest = hashlib.sha256()
    # The number of devices determines the steps per epoch, and their kind the meaning of mixed precision.
    devices = str(len(tf.config.list_logical_devices("GPU")))
    versions = (tf.__version__, version("tf-keras"))
    for part in (recipe.model_dump_json(exclude={"serving"}), code, *versions, devices):
        digest.update(part.encode() + b"\0")
    _digest(digest, data)
    return digest.hexdigest()[:32]


def completed_epochs(backup_dir: str) -> int:
    """Return the number of epochs in a backup; 0 without one.

    Example:
        >>> completed_epochs("no such folder")
        0
    """
    path = tf.train.latest_checkpoint(os.path.join(backup_dir, "chief"))
    if path is None:
        return 0
    # A backup has the index of its last epoch.
    return int(tf.train.load_variable(path, "ckpt_saved_epoch/.ATTRIBUTES/VARIABLE_VALUE")) + 1


def remove_backup(folder: str) -> None:
    """Remove a backup if it exists.

    Example:
        >>> remove_backup("no such folder")
    """
    if tf.io.gfile.exists(folder):
        tf.io.gfile.rmtree(folder)


def remove_expired_backups(folder: str) -> None:
    """Remove backups that are older than `BACKUP_DAYS`: of interrupted trainings whose recipe or data have changed.

    Example:
        >>> remove_expired_backups("no such folder")
    """
    for name in tf.io.gfile.listdir(folder) if tf.io.gfile.exists(folder) else ():
        backup = os.path.join(folder, name.rstrip("/"))
        # A Trainer that runs concurrently may remove its backup meanwhile.
        with contextlib.suppress(tf.errors.NotFoundError):
            files = [os.path.join(path, file) for path, _, found in tf.io.gfile.walk(backup) for file in found]
            written = max((tf.io.gfile.stat(file).mtime_nsec / 1e9 for file in files), default=time.time())
            if time.time() - written > BACKUP_DAYS * 24 * 3600:
                logging.info("Removing the backup %s, which was not used for %d days.", backup, BACKUP_DAYS)
                tf.io.gfile.rmtree(backup)


def _digest(digest: Any, value: Any) -> None:
    """Update a hash with arrays, or containers of arrays, with their names, dtypes and shapes."""
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype.str} {value.shape}".encode())
        # The bytes of an object array are pointers, which differ between processes.
        digest.update(repr(value.tolist()).encode() if value.dtype.hasobject else np.ascontiguousarray(value).data)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            digest.update(field.name.encode())
            _digest(digest, getattr(value, field.name))
    elif isinstance(value, Mapping):
        for name in sorted(value):
            digest.update(str(name).encode())
            _digest(digest, value[name])
    else:
        digest.update(repr(value).encode())
