"""Asks a Tandem recommender, served by TensorFlow Serving or by `tandem serve`, over gRPC. Needs no TensorFlow.

from tandem_client import Recommender

with Recommender("127.0.0.1:8500") as recommender:
    answer = recommender.recommend("42", k=10)
"""

from tandem_client.errors import DeadlineExceeded, InvalidRequest, ModelNotFound, ServerUnavailable, TandemClientError
from tandem_client.recommender import Recommender
from tandem_client.results import Recommendation, Recommendations, VersionStatus
from tandem_client.signatures import Signature, TensorSpec

__all__ = [
    "DeadlineExceeded",
    "InvalidRequest",
    "ModelNotFound",
    "Recommendation",
    "Recommendations",
    "Recommender",
    "ServerUnavailable",
    "Signature",
    "TandemClientError",
    "TensorSpec",
    "VersionStatus",
]
