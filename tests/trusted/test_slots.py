"""Which KV slot a prompt gets."""

from hypothesis import given
from hypothesis import strategies as st

from flexserve.trusted.kv.slots import Slot, choose, common_prefix

token_lists = st.lists(st.integers(0, 3), max_size=12)


def slot(number: int, tokens: list[int], owner: str = "me", *, busy: bool = False, used: float = 0) -> Slot:
    return Slot(number, tokens, owner, busy, used)


@given(first=token_lists, second=token_lists)
def test_the_common_prefix_is_common_and_as_long_as_can_be(first: list[int], second: list[int]):
    length = common_prefix(first, tuple(second))
    assert first[:length] == second[:length]
    assert length in (len(first), len(second)) or first[length] != second[length]


def test_a_conversation_goes_on_where_it_was():
    slots = [slot(0, []), slot(1, [1, 2, 3, 4]), slot(2, [1, 9])]
    assert choose(slots, "me", [1, 2, 3, 4, 5, 6]) == (slots[1], 4)


def test_a_busy_slot_is_nobodys():
    slots = [slot(0, [1, 2, 3], busy=True), slot(1, [7])]
    assert choose(slots, "me", [1, 2, 3]) == (slots[1], 0)
    slots[1].busy = True
    assert choose(slots, "me", [1, 2, 3]) is None


def test_what_another_owner_said_is_never_used():
    slots = [slot(0, [1, 2, 3], owner="you"), slot(1, [], owner="")]
    assert choose(slots, "me", [1, 2, 3]) == (slots[1], 0)
    assert choose(slots[:1], "me", [1, 2, 3]) == (slots[0], 0)


def test_an_empty_slot_is_taken_before_a_conversation_of_which_little_is_shared():
    slots = [slot(0, [1, 2, 3, 4, 5, 6, 7, 8]), slot(1, [])]
    assert choose(slots, "me", [1, 2, 9, 9, 9, 9, 9, 9]) == (slots[1], 0)


def test_the_same_question_again_finds_its_prompt_though_an_answer_follows_it():
    slots = [slot(0, [1, 2, 3, 10, 11, 12, 13, 14, 15]), slot(1, [])]
    assert choose(slots, "me", [1, 2, 3]) == (slots[0], 3)


def test_of_slots_that_share_nothing_the_one_used_longest_ago_goes():
    slots = [slot(0, [5], used=3), slot(1, [6], used=1), slot(2, [7], used=2)]
    assert choose(slots, "me", [1]) == (slots[1], 0)


def test_a_conversation_that_cannot_go_back_that_far_is_left_to_its_owner():
    slots = [slot(0, [1, 2, 3, 4, 5], used=1), slot(1, [])]

    def only_from_its_end(held: Slot, shared: int) -> int:
        return shared if shared == len(held.tokens) else 0

    assert choose(slots, "me", [1, 2, 3, 4, 9], only_from_its_end) == (slots[1], 0)
    assert choose(slots, "me", [1, 2, 3, 4, 5, 6], only_from_its_end) == (slots[0], 5)


@given(
    st.lists(st.tuples(token_lists, st.sampled_from("ab"), st.booleans()), max_size=5),
    st.sampled_from("ab"),
    token_lists,
)
def test_what_is_said_to_be_there_is_there(
    held: list[tuple[list[int], str, bool]], owner: str, known: list[int]
):
    slots = [slot(i, tokens, who, busy=busy) for i, (tokens, who, busy) in enumerate(held)]
    found = choose(slots, owner, known)
    if found is None:
        assert all(s.busy for s in slots)
        return
    chosen, kept = found
    assert not chosen.busy
    assert chosen.tokens[:kept] == known[:kept]
    assert kept == 0 or chosen.owner == owner
