"""The `evaluate` signature: outputs of the model and of the baselines for each example, for the Evaluator."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from components.trainer.data.training_data import TrainingData
from components.trainer.export.baselines import Baselines
from components.trainer.export.catalogue import Catalogue
from components.trainer.export.query_encoder import QueryEncoder
from components.trainer.export.ranking import Ranker
from components.trainer.export.signature_inputs import DTYPES, Outputs, dense
from recipe.columns import Columns

TOP_K = (1, 5, 10, 50, 100)
LIST_LENGTH = 10


class EvaluateSignature(tf.Module):
    """Evaluates serialized examples in the way that `recommend` and `rate` serve them.

    Example:
        >>> outputs = served.signatures()["evaluate"](tf.constant([tf.train.Example().SerializeToString()]))
        >>> outputs["rank"].numpy()
        array([-1])
    """

    def __init__(
        self, data: TrainingData, columns: Columns, catalogue: Catalogue, query_encoder: QueryEncoder, ranker: Ranker
    ) -> None:
        """See `ServedRecommender` for the arguments."""
        super().__init__(name="evaluation")
        self._columns = columns
        self._catalogue = catalogue
        self._query_encoder = query_encoder
        self._ranker = ranker
        self._baselines = Baselines(data)

    def evaluate(self, examples: tf.Tensor) -> Outputs:
        """Return ranks, hits, ratings, top-10 lists and slice features for each example.

        Ranks are counted from 0 in the order in which `recommend` serves items (`serving.rank_by`); hits are computed
        from the order of the scores, and measure the retrieval task. A rank is -1 if the item is new or has another
        id in `recommend`, if the index does not find it, or if the scores are not finite. With the suffix `_unseen`,
        the items that the user interacted with in the train split are excluded, except for the example's own item.

        Args:
            examples: string [B]: serialized raw `tf.train.Example`s.

        Returns:
            rating                           float32 [B]: predicted rating
            rank, rank_unseen                int64 [B]
            top_{k}_hit, top_{k}_unseen_hit  float32 [B]: 1 if the rank by score is below k
            top_10_items                     int64 [B, 10]: the top 10 items of `recommend` as vocabulary indices,
                                             padded with 0
            top_10_popularity                float32 [B]: their mean of log(1 + interactions in the train split)
            mean_rating                      float32 [B]: damped mean rating of the user and the item
            popularity_rank, popularity_rank_unseen, popularity_top_10_items, popularity_top_10_popularity
                                             the same for the most popular items
            user_key                         int64 [B]: hash of the user id, in the vocabulary or not
            user_interactions, user_activity, item_interactions, item_popularity
                                             see `Baselines.interaction_statistics`
            catalogue_size                   int64 [B]: N, the number of items
        """
        types = {**self._query_encoder.column_types, self._columns.item_id: "BYTES"}
        spec = {name: tf.io.VarLenFeature(DTYPES[kind]) for name, kind in types.items()}
        raw = tf.io.parse_example(examples, spec)
        item_ids = raw.pop(self._columns.item_id)
        item = self._catalogue.indices_of_column(item_ids)
        queries = self._query_encoder.encode_raw(raw)
        # An item that `recommend` returns under another id is not a hit: clients would not recognize it.
        named = tf.equal(tf.gather(self._catalogue.ids, item), dense(item_ids))
        candidate = tf.where(named, item, tf.zeros_like(item))
        outputs = {"rating": self._ranker.predict_ratings(queries.query, item)}
        for suffix, ranks in zip(
            ("", "_unseen"), self._ranker.ranks(queries.query, candidate, queries.seen), strict=True
        ):
            outputs[f"rank{suffix}"] = ranks.served
            for k in TOP_K:
                hit = tf.logical_and(ranks.by_score >= 0, ranks.by_score < k)
                outputs[f"top_{k}{suffix}_hit"] = tf.cast(hit, tf.float32)
        excluded = self._ranker.exclusions(queries.seen)
        length = min(LIST_LENGTH, self._catalogue.item_count)
        lists = {
            "": self._ranker.top_k(queries.query, length, excluded).items,
            "popularity_": self._baselines.most_popular(length, tf.size(item), excluded),
        }
        for prefix, items in lists.items():
            padded = tf.pad(items, [[0, 0], [0, LIST_LENGTH - length]])
            outputs[f"{prefix}top_{LIST_LENGTH}_items"] = padded
            outputs[f"{prefix}top_{LIST_LENGTH}_popularity"] = self._baselines.log_popularity(padded)
        popularity_rank, popularity_rank_unseen = self._baselines.rank(item, queries.seen)
        return {
            **outputs,
            "mean_rating": self._ranker.clip(self._baselines.mean_rating(queries.user, item)),
            "popularity_rank": popularity_rank,
            "popularity_rank_unseen": popularity_rank_unseen,
            "user_key": tf.strings.to_hash_bucket_fast(dense(raw[self._columns.user_id]), np.iinfo(np.int64).max),
            **self._baselines.interaction_statistics(queries.user, item),
            "catalogue_size": tf.fill(tf.shape(item), tf.constant(self._catalogue.item_count, tf.int64)),
        }
