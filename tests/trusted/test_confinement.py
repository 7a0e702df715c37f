"""Which tokens a grammar lets through next."""

from __future__ import annotations

import pytest
from grammars import grammar

from flexserve.errors import CallerError
from flexserve.trusted.text.grammar import Confinement, TokenTree


class Doubled:
    """A vocabulary in which some tokens say the same, one is a part of a character, one very long."""

    pieces = (b"", b"1", b"1", b"", b'"', b"\xe2", b"\x82\xac", b"x" * 5000, b"11", b"2", b"<tag>")

    def piece(self, token: int) -> bytes:
        return self.pieces[token]

    def ends(self, token: int) -> bool:
        return token in (0, 3)


def test_tokens_that_say_the_same_are_admitted_together() -> None:
    rules = Confinement(TokenTree(Doubled(), len(Doubled.pieces)), grammar({"enum": [1, 11]}))
    assert list(rules.admitted()) == [1, 2, 8]
    rules.accept(2)
    assert list(rules.admitted()) == [0, 1, 2, 3]
    rules.accept(1)
    assert list(rules.admitted()) == [0, 3]


def test_characters_in_pieces_come_whole() -> None:
    rules = Confinement(TokenTree(Doubled(), len(Doubled.pieces)), grammar({"const": "€"}))
    for token in (4, 5, 6, 4):
        assert list(rules.admitted()) == [token]
        rules.accept(token)
    assert list(rules.admitted()) == [0, 3]


def test_what_no_token_says_is_unsatisfiable() -> None:
    rules = Confinement(TokenTree(Doubled(), len(Doubled.pieces)), grammar({"const": "a"}))
    with pytest.raises(CallerError) as caught:
        rules.accept(4)
    assert caught.value.code == "schema_unsatisfiable"
