"""Prefix search over the words of the display columns, for a search box."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from components.trainer.data.training_data import TrainingData

MAX_TEXT_LENGTH = 200
"""Maximum number of characters of a searched text; RE2 rejects patterns that are much longer."""

# The characters of words: letters, marks and digits, as text features split words.
_WORD_SIGN = r"\pL\pM\pN"
_PATTERN_SIGN = r"[\\.+*?()|\[\]{}^$]"


class TextSearch(tf.Module):
    """Searches the display columns of all items, without an index: time is linear in the catalogue.

    Example:
        >>> text_search = TextSearch(data)
        >>> text_search.search(tf.constant(["Story", "no such word"]), k=3).numpy().min(axis=1) > 0
        array([ True, False])
    """

    def __init__(self, data: TrainingData) -> None:
        """
        Args:
            data: The train split, with at least one display column.
        """
        super().__init__(name="text_search")
        self._columns = [tf.constant(_valid(values[1:])) for values in data.display.values()]
        counts = data.item_frequencies()[1:]
        popularity_rank = np.empty(len(counts), np.int32)
        # Items with equal counts are ordered by index.
        popularity_rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts), 0, -1)
        self._popularity_rank = tf.Variable(popularity_rank, trainable=False, name="popularity_rank")
        """int32 [N]: N for the most popular item, down to 1."""

    def search(self, text: tf.Tensor, k: int) -> tf.Tensor:
        """Return the items with a word that starts with the text, regardless of case.

        A word starts at the beginning of a column, and after any character that is not a letter, mark or digit.
        Surrounding spaces of the text are ignored. Items with a column that starts with the text are first; within both
        groups, items are ordered by popularity.

        Args:
            text: string [B]; '' and a text longer than `MAX_TEXT_LENGTH` match no item.
            k: Number of items, at most N.

        Returns:
            int64 [B, k]: vocabulary indices, padded with 0.
        """
        stripped = tf.strings.strip(tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace"))
        length = tf.strings.length(stripped, unit="UTF8_CHAR")
        valid = tf.logical_and(length > 0, length <= MAX_TEXT_LENGTH)
        quoted = tf.strings.regex_replace(tf.where(valid, stripped, ""), _PATTERN_SIGN, r"\\\0")
        items = tf.map_fn(
            lambda row: self._search_one(row, k), quoted, fn_output_signature=tf.TensorSpec([k], tf.int64)
        )
        return tf.where(valid[:, None], items, tf.zeros_like(items))

    def _search_one(self, quoted: tf.Tensor, k: int) -> tf.Tensor:
        def matches(before: str) -> tf.Tensor:
            pattern = tf.strings.join([f"(?is){before}", quoted, ".*"])
            return tf.reduce_any([tf.strings.regex_full_match(column, pattern) for column in self._columns], axis=0)

        popularity_rank = self._popularity_rank.read_value()
        count = tf.size(popularity_rank)
        keys = tf.where(matches(f"(.*[^{_WORD_SIGN}])?"), popularity_rank + tf.where(matches(""), count, 0), 0)
        best, positions = tf.math.top_k(keys, k=k)
        return tf.where(best > 0, tf.cast(positions, tf.int64) + 1, 0)


def _valid(values: np.ndarray) -> list[str]:
    """Return the values as valid Unicode, which RE2 requires."""
    return [value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values.tolist()]
