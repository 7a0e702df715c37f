"""Whether a draft pays, as it is counted."""

from __future__ import annotations

from flexserve.bench.drafts import Sample, table


def test_the_table_says_how_much_faster_answers_are_and_whether_their_words_are_the_same() -> None:
    plain, drafted = Sample("a b", 10.0, 0, 0), Sample("a b", 15.0, 30, 20)
    shown = table([(plain, drafted), (plain, Sample("a c", 12.0, 10, 2)), (plain, drafted)])
    assert "| tokens a second without a draft | 10.0 |" in shown
    assert "| ratio, median | 1.50 (1.20 to 1.50) |" in shown
    assert "| guesses that were right | 42 of 70 |" in shown
    assert "| answers with the same words | 2 of 3 |" in shown
