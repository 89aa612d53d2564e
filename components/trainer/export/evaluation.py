"""What the Evaluator is told of each example, of the model and of the baselines beside it."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from components.trainer.data.training_data import TrainingData
from components.trainer.export.baselines import Baselines
from components.trainer.export.catalogue import Catalogue
from components.trainer.export.ranking import Ranker
from components.trainer.export.remembered_users import RememberedUsers
from components.trainer.export.signature_inputs import DTYPES, Outputs, dense
from recipe.columns import Columns

TOP_K = (1, 5, 10, 50, 100)
LIST_LENGTH = 10


class Evaluation(tf.Module):
    """Serialized examples answered the way that `recommend` and `rate` answer, and compared with what happened."""

    def __init__(
        self, data: TrainingData, columns: Columns, catalogue: Catalogue, users: RememberedUsers, ranker: Ranker
    ) -> None:
        """See `ServedRecommender`."""
        super().__init__(name="evaluation")
        self._columns = columns
        self._catalogue = catalogue
        self._users = users
        self._ranker = ranker
        self._baselines = Baselines(data)

    def evaluate(self, examples: tf.Tensor) -> Outputs:
        """What the Evaluator needs to know of each example.

        Ranks are places among the whole catalogue, the first one 0; -1 where there is none, because the item is unknown
        or has another id in `recommend`, the index does not come upon it, or the scores are no numbers. Those that end
        in `_unseen` are places among the items that the user has no interaction with in train; the example's own item
        is always a candidate. `rank` and `rank_unseen` are places in the order in which `recommend` serves items
        (`serving.rank_by`), hits are those of retrieval: they tell how good the scores are.

        Args:
            examples: string [B], serialized raw tf.Examples.

        Returns:
            rating                           float32 [B]
            rank, rank_unseen                int64 [B]
            top_{k}_hit, top_{k}_unseen_hit  float32 [B]: 1 where the place by score is below k
            top_10_items                     int64 [B, 10]: the first ten items that `recommend` answers, as vocabulary
                                             indices, padded with 0
            top_10_popularity                float32 [B]: their mean of log(1 + interactions in train)
            mean_rating                      float32 [B]: the rating of the damped user and item means
            popularity_rank, popularity_rank_unseen, popularity_top_10_items, popularity_top_10_popularity
                                             the same of the most popular items
            user_key                         int64 [B]: the same for the same user id, known or not
            user_interactions, user_activity, item_interactions, item_popularity
                                             see `Baselines.familiarity`
            catalogue_size                   int64 [B]: the number of items
        """
        types = {**self._users.column_types, self._columns.item_id: "BYTES"}
        spec = {name: tf.io.VarLenFeature(DTYPES[kind]) for name, kind in types.items()}
        raw = tf.io.parse_example(examples, spec)
        item_ids = raw.pop(self._columns.item_id)
        item = self._catalogue.indices_of_column(item_ids)
        asked = self._users.ask_raw(raw)
        # A hit is one only if `recommend` calls the item by its name.
        named = tf.equal(tf.gather(self._catalogue.ids, item), dense(item_ids))
        candidate = tf.where(named, item, tf.zeros_like(item))
        answer = {"rating": self._ranker.rating(asked.query, item)}
        for suffix, places in zip(
            ("", "_unseen"), self._ranker.places(asked.query, candidate, asked.seen), strict=True
        ):
            answer[f"rank{suffix}"] = places.served
            for k in TOP_K:
                hit = tf.logical_and(places.by_score >= 0, places.by_score < k)
                answer[f"top_{k}{suffix}_hit"] = tf.cast(hit, tf.float32)
        left_out = self._ranker.left_out(asked.seen)
        length = min(LIST_LENGTH, self._catalogue.item_count)
        lists = {
            "": self._ranker.top(asked.query, length, left_out).items,
            "popularity_": self._baselines.first(length, tf.size(item), left_out),
        }
        for prefix, items in lists.items():
            padded = tf.pad(items, [[0, 0], [0, LIST_LENGTH - length]])
            answer[f"{prefix}top_{LIST_LENGTH}_items"] = padded
            answer[f"{prefix}top_{LIST_LENGTH}_popularity"] = self._baselines.log_popularity(padded)
        popularity_rank, popularity_rank_unseen = self._baselines.rank(item, asked.seen)
        return {
            **answer,
            "mean_rating": self._ranker.within_bounds(self._baselines.rating(asked.user, item)),
            "popularity_rank": popularity_rank,
            "popularity_rank_unseen": popularity_rank_unseen,
            "user_key": tf.strings.to_hash_bucket_fast(dense(raw[self._columns.user_id]), np.iinfo(np.int64).max),
            **self._baselines.familiarity(asked.user, item),
            "catalogue_size": tf.fill(tf.shape(item), tf.constant(self._catalogue.item_count, tf.int64)),
        }
