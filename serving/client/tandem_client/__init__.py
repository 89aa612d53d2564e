"""gRPC client for a Tandem recommender on TensorFlow Serving or `tandem serve`. Needs no TensorFlow.

    from tandem_client import Recommender

    with Recommender("127.0.0.1:8500") as recommender:
        recommendations = recommender.recommend("42", k=10)

`AsyncRecommender` is the same for asyncio.
"""

from tandem_client.aio import AsyncRecommender
from tandem_client.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ServerUnavailable,
    SignatureMissing,
    TandemClientError,
)
from tandem_client.recommender import Recommender
from tandem_client.results import (
    Embedding,
    FoundItem,
    FoundItems,
    Recommendation,
    Recommendations,
    SimilarItem,
    SimilarItems,
    VersionStatus,
)
from tandem_client.signatures import Signature, TensorSpec
from tandem_client.tls import Tls

__all__ = [
    "AsyncRecommender",
    "DeadlineExceeded",
    "Embedding",
    "FoundItem",
    "FoundItems",
    "InvalidRequest",
    "ModelNotFound",
    "Recommendation",
    "Recommendations",
    "Recommender",
    "ServerUnavailable",
    "Signature",
    "SignatureMissing",
    "SimilarItem",
    "SimilarItems",
    "TandemClientError",
    "TensorSpec",
    "Tls",
    "VersionStatus",
]
