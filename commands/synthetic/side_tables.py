"""Generates items.csv and users.csv: some columns correlate with the preferences, others are noise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from commands.synthetic.ground_truth import Floats, GroundTruth, Ints, Items, Users, stream

GENRE_CORRELATION = 0.8
"""Fraction of the items whose first genre is that of their cluster; the others have a random one."""
OCCUPATION_CORRELATION = 0.6
"""Fraction of the users whose occupation is that of their first cluster; the others have a random one."""
NO_AGE = 0.03
"""Fraction of the users with a missing age."""

_GENRES = (
    "Action", "Adventure", "Animation", "Biography", "Comedy", "Crime", "Documentary", "Drama", "Family", "Fantasy",
    "History", "Horror", "Music", "Mystery", "Romance", "Science Fiction", "Sport", "Thriller", "War", "Western",
)  # fmt: skip
_OCCUPATIONS = (
    "artist", "baker", "carpenter", "doctor", "engineer", "farmer", "gardener", "homemaker", "journalist", "lawyer",
    "librarian", "mechanic", "nurse", "pilot", "programmer", "retired", "sales", "scientist", "student", "teacher",
)  # fmt: skip
_ADJECTIVES = (
    "Broken", "Crimson", "Distant", "Endless", "Fallen", "Golden", "Hidden", "Last", "Lost", "Quiet", "Second",
    "Secret", "Silent", "Silver", "Stolen", "Wild",
)  # fmt: skip
_NOUNS = (
    "Bridge", "City", "Dawn", "Garden", "Harbour", "House", "Island", "Journey", "Letter", "Mirror", "Mountain",
    "Night", "Promise", "River", "Road", "Room", "Shadow", "Song", "Storm", "Summer", "Tower", "Train", "Winter",
    "Witness",
)  # fmt: skip

_ITEM_TABLE, _USER_TABLE = 3, 4
_CHUNK = 1 << 16


def _names(kind: tuple[str, ...], count: int) -> npt.NDArray[np.object_]:
    """Return `count` distinct names."""
    rounds = ["", *(f" {number}" for number in range(2, 2 + count // len(kind)))]
    return np.array([name + suffix for suffix in rounds for name in kind][:count], dtype=object)


def item_tables(ground_truth: GroundTruth) -> Iterator[pa.Table]:
    """Yield `item_id`, `title`, `year` and `genres`, by id. The year of the launch correlates with popularity."""
    items: Items = ground_truth.items
    clusters = ground_truth.arguments.clusters
    random = stream(ground_truth.arguments.seed, _ITEM_TABLE)
    order = np.argsort(items.number)
    genres = _names(_GENRES, clusters)
    for start in range(0, len(order), _CHUNK):
        slots = order[start : start + _CHUNK]
        first = _correlated(items.cluster[slots], GENRE_CORRELATION, clusters, random)
        second = random.integers(0, clusters, len(slots))
        both = (random.random(len(slots)) < 0.4) & (second != first)
        adjectives = random.integers(0, len(_ADJECTIVES), len(slots)).tolist()
        nouns = random.integers(0, len(_NOUNS), len(slots)).tolist()
        yield pa.table(
            {
                "item_id": pa.array(items.number[slots]),
                "title": pa.array(
                    [f"The {_ADJECTIVES[one]} {_NOUNS[two]}" for one, two in zip(adjectives, nouns, strict=True)]
                ),
                "year": pa.array(2023 + np.floor(items.launch[slots] / 12).astype(np.int64)),
                "genres": pa.array(np.where(both, genres[first] + "|" + genres[second], genres[first])),
            }
        )


def user_tables(ground_truth: GroundTruth) -> Iterator[pa.Table]:
    """Yield `user_id`, `age`, `gender` and `occupation`, by id. Age and gender are noise."""
    users: Users = ground_truth.users
    clusters = ground_truth.arguments.clusters
    random = stream(ground_truth.arguments.seed, _USER_TABLE)
    occupations = _names(_OCCUPATIONS, clusters)
    for start in range(0, len(users.counts), _CHUNK):
        homes = users.homes[start : start + _CHUNK, 0].astype(np.int64)
        ages: Floats = np.clip(np.rint(14 + random.gamma(3.0, 8.0, len(homes))), 14, 99)
        unknown = random.random(len(homes)) < NO_AGE
        women = random.random(len(homes)) < 0.5
        yield pa.table(
            {
                "user_id": pa.array(np.arange(start + 1, start + len(homes) + 1)),
                "age": pa.array(ages.astype(np.int64), mask=unknown),
                "gender": pa.array(np.where(women, "F", "M")),
                "occupation": pa.array(occupations[_correlated(homes, OCCUPATION_CORRELATION, clusters, random)]),
            }
        )


def _correlated(clusters: Ints, share: float, count: int, random: np.random.Generator) -> Ints:
    """Return the clusters themselves with probability `share`, else a random cluster."""
    own = random.random(len(clusters)) < share
    return np.where(own, clusters, random.integers(0, count, len(clusters)))
