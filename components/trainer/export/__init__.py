"""The exported SavedModel: one graph that embeds, retrieves, leaves out items, ranks and predicts ratings.

Plain TensorFlow ops only, so that a stock TensorFlow Serving loads it. Its signatures are the contract between the
pipeline and serving; docs/serving.md has each with its names, shapes, defaults and errors. What is where:

    served_recommender   the signatures, and the module that is saved
    signature_inputs     optional inputs: their defaults, and which rows have a value
    remembered_users     requests encoded: what is not given is what the model remembers of the user
    catalogue            the items: ids, columns to be shown, features, vectors of an item from its columns
    index_choice         how retrieval finds items: comparing with all of them, or with those of the nearest cells
    ranking              retrieval, the items left out, the order in which they are served, and ratings
    neighbours           items that are like an item
    word_search          items by the words of their columns
    evaluation           what the Evaluator is told of each example
    warm_up              the requests that TensorFlow Serving sends a version before it takes traffic
"""

from __future__ import annotations

from components.trainer.export.evaluation import LIST_LENGTH, TOP_K
from components.trainer.export.ranking import label_bounds
from components.trainer.export.served_recommender import ServedRecommender, save

__all__ = ["LIST_LENGTH", "TOP_K", "ServedRecommender", "label_bounds", "save"]
