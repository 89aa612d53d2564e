"""`tandem recommend`, `rate` and `similar` against a server: output and exit codes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from recommender_model import ITEMS, K
from relay import relayed

from tandem_client import Recommender

Run = Callable[..., Any]


@pytest.fixture
def ask(tandem: Run, all_signatures: str) -> Run:
    return lambda *arguments: tandem(*arguments, "--target", all_signatures)


@pytest.fixture(scope="module")
def client(all_signatures: str) -> Iterator[Recommender]:
    with Recommender(all_signatures, timeout=30) as made:
        yield made


def _items(outcome: Any) -> list[str]:
    assert outcome.code == 0, outcome.stderr
    return [each["item_id"] for each in outcome.json["items"]]


def test_recommend_with_filters_and_any_k(ask: Run, client: Recommender) -> None:
    everything = _items(ask("recommend", "--user", "1", "--k", "100", "--json"))
    assert sorted(everything) == sorted(ITEMS)
    allowed = [flag for item in everything[::2] for flag in ("--only", item)]
    found = ask(
        "recommend", "--user", "1", "--k", "30", "--exclude", everything[0], "--exclude", "x", *allowed, "--json"
    )
    assert _items(found) == everything[2::2]
    first = client.recommend("1", k=1).items[0]
    best = ask("recommend", "--user", "1", "--k", "1", "--json").json
    assert best["user_id"] == "1"
    assert best["items"] == [
        {
            "item_id": first.item_id,
            "score": pytest.approx(first.score, rel=1e-5),
            "rating": pytest.approx(first.rating, rel=1e-5),
            "title": first.display["title"],
        }
    ]


def test_recommend_reports_an_empty_list(ask: Run) -> None:
    nothing = ask("recommend", "--user", "1", "--only", "nothing")
    assert nothing.code == 0 and "No items left to recommend to user 1" in nothing.stdout
    assert _items(ask("recommend", "--user", "1", "--only", "nothing", "--json")) == []
    some = ask("recommend", "--user", "1", "--only", "i0", "--only", "i9")
    assert "Batman (1989)" in some.stdout and "[REC]" in some.stdout and "predicted rating" in some.stdout


def test_similar_by_id(ask: Run, client: Recommender) -> None:
    answer = ask("similar", "--item", "i3", "--k", "4", "--json")
    assert _items(answer) == [each.item_id for each in client.similar("i3", k=4).items]
    assert answer.json["item_id"] == "i3" and answer.json["other_hits"] == []
    assert answer.json["items"][0].keys() == {"item_id", "score", "title"}
    shown = ask("similar", "--item", "i3", "--k", "4")
    assert shown.code == 0 and "Similar to item i3" in shown.stdout and "similarity" in shown.stdout
    assert len(re.findall(r"^\d+ +i\d+ ", shown.stdout, re.MULTILINE)) == 4
    assert "Other matches" not in shown.stdout


def test_similar_by_title_uses_the_first_match_and_lists_the_others_in_one_line(ask: Run) -> None:
    answer = ask("similar", "--title", "batman", "--json")
    by_id = ask("similar", "--item", "i0", "--json")
    assert _items(answer) == _items(by_id) and len(_items(answer)) == K
    assert (answer.json["item_id"], answer.json["title"]) == ("i0", "Batman (1989)")
    assert [each["item_id"] for each in answer.json["other_hits"]] == ["i1", "i2"]
    shown = ask("similar", "--title", "batman")
    assert "Similar to item i0, Batman (1989)" in shown.stdout
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("Other matches")]
    assert line == "Other matches, for --item ID: i1 Batman & Robin (1997), i2 The Lego Batman Movie"


def test_markup_in_titles_is_shown_as_it_is(ask: Run) -> None:
    shown = ask("similar", "--title", "[rec")
    assert shown.code == 0, shown.stderr
    assert "Similar to item i9, [REC]" in shown.stdout


def test_errors_of_similar_have_a_remedy(ask: Run) -> None:
    nothing = ask("similar", "--title", "zzz", "--json")
    assert nothing.code == 2 and "--item ID" in nothing.json["error"] and "'zzz'" in nothing.stderr
    for arguments in ((), ("--item", "i1", "--title", "batman")):
        outcome = ask("similar", *arguments)
        assert outcome.code == 2 and "exactly one of --item ID and --title TEXT" in outcome.stderr
    unknown = ask("similar", "--item", "nothing")
    assert unknown.code == 0 and "not in the catalogue" in unknown.stdout
    assert _items(ask("similar", "--item", "nothing", "--json")) == []
    too_many = ask("similar", "--item", "i1", "--k", "11")
    assert too_many.code == 2 and "at most 10" in too_many.stderr


def test_unassigned_label(ask: Run) -> None:
    for command in (("recommend", "--user", "1"), ("rate", "--user", "1", "--item", "i1"), ("similar", "--item", "i1")):
        outcome = ask(*command, "--label", "canary", "--json")
        assert outcome.code == 1
        assert "label 'canary': not served there" in outcome.json["error"]


def test_tls_and_mutual_tls(tandem: Run, all_signatures: str, tmp_path: Path) -> None:
    import grpc

    authority = trustme.CA()
    server, client = authority.issue_cert("localhost"), authority.issue_cert("service@example.org")
    root, cert, key = (tmp_path / name for name in ("root.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(str(root))
    cert.write_bytes(b"".join(each.bytes() for each in client.cert_chain_pems))
    client.private_key_pem.write_to_path(str(key))
    pair = (server.private_key_pem.bytes(), server.cert_chain_pems[0].bytes())
    credentials = grpc.ssl_server_credentials([pair], authority.cert_pem.bytes(), True)
    with relayed(all_signatures, credentials) as relay:
        whole = ("--target", relay.target, "--tls-root", root, "--tls-cert", cert, "--tls-key", key)
        for command in (
            ("recommend", "--user", "1"),
            ("rate", "--user", "1", "--item", "i1"),
            ("similar", "--item", "i1"),
        ):
            outcome = tandem(*command, *whole)
            assert outcome.code == 0, outcome.stderr
        rejected = tandem("recommend", "--user", "1", *whole[:4], "--timeout", "5")
        assert rejected.code == 1 and "root certificates" in rejected.stderr
        public = tandem("recommend", "--user", "1", *whole[:2], "--tls", "--timeout", "5")
        assert public.code == 1 and "root certificates" in public.stderr
        half = tandem("recommend", "--user", "1", *whole[:6])
        assert half.code == 2 and "--tls-cert without --tls-key" in half.stderr
        missing = tandem("recommend", "--user", "1", "--tls-root", tmp_path / "nowhere.pem")
        assert missing.code == 2 and "--tls-root" in missing.stderr
