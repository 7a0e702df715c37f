"""A chat: what is typed, what is remembered, and the commands of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from flexserve.cli import answers
from flexserve.cli.answers import WordWrap
from flexserve.cli.conversation import Conversation
from flexserve.cli.message_input import line_editor, messages
from flexserve.errors import CallerError
from flexserve.normal.reports import Answer, Ending, Protection
from flexserve.protocol.answers import Timings, Usage
from flexserve.protocol.prompts import ChatMessage
from flexserve.protocol.sampling import Sampling


class Parrot:
    """Answers with the number of turns it was told; its context holds `room` characters."""

    is_server = False
    place = "here"

    def __init__(self, room: int = 1000) -> None:
        self.asked: list[tuple[str, list[tuple[str, str]], Sampling]] = []
        self._room = room

    def protection(self) -> Protection:
        raise NotImplementedError

    def models(self) -> list[str]:
        return ["big", "tiny"]

    def has_template(self, model: str) -> bool | None:
        return True

    def ask(self, model: str, messages: list[ChatMessage], sampling: Sampling) -> Answer:
        turns = [(turn.role, turn.content) for turn in messages]
        if sum(len(text) for _, text in turns) > self._room:
            raise CallerError("too long", code="context_length_exceeded")
        self.asked.append((model, turns, sampling))
        yield f"{len(turns)} turns"
        yield Ending("stop", Usage(1, 1, 0), Timings())


def hold(*typed: str, who: Parrot | None = None) -> tuple[Conversation, Parrot]:
    who = who or Parrot()
    conversation = Conversation(who, "tiny", Sampling(), stats=False)
    conversation.hold(typed)
    return conversation, who


def told(who: Parrot) -> list[list[str]]:
    """What was said in each question, without roles."""
    return [[text for _, text in turns] for _, turns, _ in who.asked]


# ---- what is typed


def typed(*lines: str) -> list[str]:
    rest = iter(lines)

    def read(_prompt: str) -> str:
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    return list(messages(read))


def test_each_line_is_a_message() -> None:
    assert typed("one", "", "two") == ["one", "", "two"]


def test_quotes_hold_lines_together() -> None:
    assert typed('"""one', "  two", '"""', "three") == ["one\n  two", "three"]
    assert typed('"""', "one", 'two"""  ') == ["one\ntwo"]
    assert typed('"""one"""') == ["one"]
    assert typed('"""', "one") == ["one"]


def test_what_is_pasted_is_one_message() -> None:
    with create_pipe_input() as keys:
        keys.send_text("\x1b[200~one\r\ntwo\x1b[201~ three\rfour\r\x04")
        assert list(messages(line_editor(keys, DummyOutput()))) == ["one\ntwo three", "four"]


def test_ctrl_c_drops_what_is_typed_and_ctrl_d_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    with create_pipe_input() as keys:
        keys.send_text("half\x03whole\r\x04")
        assert list(messages(line_editor(keys, DummyOutput()))) == ["whole"]
    assert "Ctrl-D or /exit leaves" in capsys.readouterr().err


# ---- commands


def test_a_system_prompt_comes_first_until_it_is_taken_back() -> None:
    _, who = hold("/set system Be short.", "a", "/set system", "/clear", "b")
    assert who.asked[0][1] == [("system", "Be short."), ("user", "a")]
    assert who.asked[1][1] == [("user", "b")]


def test_sampling_is_set_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    conversation, who = hold("/set temperature 0", "/set seed 7", "/set", "a")
    assert (who.asked[0][2].temperature, who.asked[0][2].seed) == (0, 7)
    assert conversation.sampling == who.asked[0][2]
    assert "seed        7" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["/set temperature warm", "/set temperature -1", "/set seed 0.5", "/set stop x"]
)
def test_what_cannot_be_set_is_said_and_changes_nothing(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation, _ = hold(line)
    assert "error: " in capsys.readouterr().err
    assert conversation.sampling == Sampling()


def test_another_model_goes_on_with_the_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    _, who = hold("a", "/model big", "b", "/model nosuch", "/model")
    assert [model for model, _, _ in who.asked] == ["tiny", "big"]
    assert told(who)[1] == ["a", "1 turns", "b"]
    errors = capsys.readouterr().err
    assert "There is no model named 'nosuch'" in errors
    assert "[big], tiny" in errors


def test_a_saved_conversation_goes_on_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    hold("/set system Be short.", "a", f"/save {path}")
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text())["model"] == "tiny"
    _, who = hold(f"/load {path}", "b")
    assert told(who) == [["Be short.", "a", "2 turns", "b"]]


def test_files_that_are_no_conversations_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list").write_text("[]")
    (tmp_path / "bytes").write_bytes(b"\xff")
    (tmp_path / "roles").write_text('{"messages": [{"role": 3}]}')
    conversation, _ = hold(
        "a", *(f"/load {tmp_path / name}" for name in ("nosuch", "list", "bytes", "roles"))
    )
    errors = capsys.readouterr().err
    assert errors.count("holds no conversation") == 3
    assert "cannot be read" in errors
    assert len(conversation.messages) == 2


def test_saving_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept").write_text("mine")
    hold("a", f"/save {tmp_path / 'kept'}", "/save")
    assert (tmp_path / "kept").read_text() == "mine"
    assert capsys.readouterr().err.count("error: ") == 2


# ---- the context's end


def test_the_oldest_turns_make_way_with_a_notice(capsys: pytest.CaptureFixture[str]) -> None:
    _, who = hold("/set system Be short.", "x" * 20, "y" * 20, "z" * 20, who=Parrot(room=70))
    assert told(who)[-1] == ["Be short.", "y" * 20, "4 turns", "z" * 20]
    assert capsys.readouterr().err.count("the oldest question and its answer are forgotten") == 1


def test_a_question_that_never_fits_is_the_persons_to_shorten(capsys: pytest.CaptureFixture[str]) -> None:
    conversation, who = hold("a", "x" * 2000, "b")
    assert "error: too long" in capsys.readouterr().err
    assert told(who)[-1] == ["b"]
    assert [turn.content for turn in conversation.messages] == ["b", "1 turns"]


# ---- words


def wrapped(text: str, columns: int, piece: int = 3) -> str:
    wrap = WordWrap(columns)
    return "".join(wrap.feed(text[at : at + piece]) for at in range(0, len(text), piece)) + wrap.rest()


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_lines_end_between_words(piece: int) -> None:
    assert wrapped("one two three four", 9, piece) == "one two\nthree\nfour"
    assert wrapped("  indented\n\n- a list", 40, piece) == "  indented\n\n- a list"
    assert wrapped("toolongforaline x", 5, piece) == "toolongforaline\nx"


def test_wide_characters_count_twice_and_end_lines_anywhere() -> None:
    assert wrapped("漢字漢字漢字", 8) == "漢字漢字\n漢字"


def test_code_stays_as_it_is() -> None:
    code = "```\n" + "a = b + c + d + e\n" * 2 + "```\n"
    assert wrapped(code + "a word too much", 10) == code + "a word too\nmuch"


def test_what_is_told_of_an_answer_says_what_its_first_token_waited_for() -> None:
    usage = Usage(prompt_tokens=3, completion_tokens=2)
    busy = Ending("stop", usage, Timings(queue=2300, ttft=2400))
    assert "first token after 2400 ms, of which 2300 ms in the queue" in answers.told(busy)
    assert "queue" not in answers.told(Ending("stop", usage, Timings(queue=3, ttft=90)))
