"""The exported SavedModel: one graph that encodes queries, retrieves, excludes, ranks and predicts ratings.

It uses TensorFlow's built-in ops only, so that a stock TensorFlow Serving loads it. Its signatures are the contract
between the pipeline and serving; docs/serving.md specifies names, shapes, defaults and errors. The modules:

    served_recommender   the signatures, and the module that is saved
    signature_inputs     optional inputs: their defaults, and the mask of rows with a value
    query_encoder        requests to encoded queries, with the stored features and history of the user as defaults
    catalogue            the items: ids, display columns, features, and item vectors from columns
    ranking              retrieval, exclusion of items, re-ranking and predicted ratings
    similar_items        items similar to an item
    text_search          items by the words of their display columns
    evaluate_signature   outputs of the model and of the baselines for each example, for the Evaluator
    baselines            most popular items and damped means, measured beside the model
    warm_up_requests     the requests that TensorFlow Serving runs before it makes a version available
"""

from __future__ import annotations

from components.trainer.export.evaluate_signature import LIST_LENGTH, TOP_K
from components.trainer.export.ranking import label_bounds
from components.trainer.export.served_recommender import ServedRecommender, save

__all__ = ["LIST_LENGTH", "TOP_K", "ServedRecommender", "label_bounds", "save"]
