"""Items by the words of the columns that are shown with them: what people type to name an item."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from components.trainer.data.training_data import TrainingData

LONGEST_TEXT = 200
"""Characters of a text that is looked for: RE2 refuses patterns that are much longer."""

# What words are made of, as text features split them.
_WORD_SIGN = r"\pL\pM\pN"
_PATTERN_SIGN = r"[\\.+*?()|\[\]{}^$]"


class WordSearch(tf.Module):
    """Looks through every item's columns at each request: work for the words of a search box, not for every page."""

    def __init__(self, data: TrainingData) -> None:
        """Takes the display columns, at least one, and the popularity of what Trainer learnt from."""
        super().__init__(name="word_search")
        self._columns = [tf.constant(_valid(values[1:])) for values in data.display.values()]
        counts = data.item_frequencies()[1:]
        standing = np.empty(len(counts), np.int32)
        # Equally popular items stand in the order of the catalogue.
        standing[np.argsort(-counts, kind="stable")] = np.arange(len(counts), 0, -1)
        self._standing = tf.Variable(standing, trainable=False, name="standing")
        """int32 [N]: N for the most popular item, down to 1."""

    def find(self, text: tf.Tensor, k: int) -> tf.Tensor:
        """The items in which a word starts with the text, whether in capitals or not.

        A word starts where a column does, and after whatever is no letter, mark or digit. Spaces around the text do
        not count. Items of which a column itself starts with the text come first, then the more popular ones.

        Args:
            text: string [B]; '' finds nothing, and neither does one that is longer than `LONGEST_TEXT`.
            k: How many, at most N.

        Returns:
            int64 [B, k]: vocabulary indices, padded with 0.
        """
        stripped = tf.strings.strip(tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace"))
        length = tf.strings.length(stripped, unit="UTF8_CHAR")
        asked = tf.logical_and(length > 0, length <= LONGEST_TEXT)
        quoted = tf.strings.regex_replace(tf.where(asked, stripped, ""), _PATTERN_SIGN, r"\\\0")
        places = tf.map_fn(lambda row: self._find_one(row, k), quoted, fn_output_signature=tf.TensorSpec([k], tf.int64))
        return tf.where(asked[:, None], places, tf.zeros_like(places))

    def _find_one(self, quoted: tf.Tensor, k: int) -> tf.Tensor:
        def matches(before: str) -> tf.Tensor:
            pattern = tf.strings.join([f"(?is){before}", quoted, ".*"])
            return tf.reduce_any([tf.strings.regex_full_match(column, pattern) for column in self._columns], axis=0)

        standing = self._standing.read_value()
        count = tf.size(standing)
        keys = tf.where(matches(f"(.*[^{_WORD_SIGN}])?"), standing + tf.where(matches(""), count, 0), 0)
        best, places = tf.math.top_k(keys, k=k)
        return tf.where(best > 0, tf.cast(places, tf.int64) + 1, 0)


def _valid(values: np.ndarray) -> list[str]:
    """Strings that the pattern language takes."""
    return [value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values.tolist()]
