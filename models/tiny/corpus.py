"""The text of FlexServe Tiny: reading `corpus/*.md`, and asking each question in many ways.

An entry is a heading, names, and alternating groups of `q:` lines (paraphrases of one question)
and `a:` lines (its answer). More than one group is a conversation. What is held out for the
measurement is decided here, once and for all, so that training never sees it.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
HELD_OUT_EVERY = 4  # every 4th entry keeps its last question for the measurement...
HELD_OUT_FROM = 4  # ...if it has this many
HELD_OUT_NAMES = 3  # so many of the last "names" templates are kept for the measurement
HELD_OUT_TOPICS = 12  # every 12th word of the off-topic lists, and every 12th plain off-topic question


@dataclass(frozen=True, slots=True)
class Turn:
    """Paraphrases of one question, and the one answer to all of them."""

    questions: tuple[str, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One fact (one turn) or one conversation (several); `names` may be asked for by template."""

    title: str
    names: tuple[str, ...]
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Sections:
    """A markdown file of lists: each `## heading` with its `- ` items and its other text."""

    items: dict[str, list[str]]
    text: dict[str, str]


def read_entries(path: Path) -> list[Entry]:
    """Return the entries of a question file. Raises ValueError, with the title, when one is malformed."""
    return [_parse_entry(block) for block in re.split(r"^## ", path.read_text("utf-8"), flags=re.M)[1:]]


def _parse_entry(block: str) -> Entry:
    title, *lines = (line.strip() for line in block.splitlines() if line.strip())
    names: tuple[str, ...] = ()
    turns: list[Turn] = []
    questions: list[str] = []
    for line in lines:
        kind, _, value = line.partition(": ")
        if kind == "names":
            names = tuple(name.strip() for name in value.split("|"))
        elif kind == "q":
            questions.append(value)
        elif kind == "a" and questions:
            turns.append(Turn(tuple(questions), value))
            questions = []
        else:
            raise ValueError(f"entry {title!r}: cannot read the line {line!r}")
    if not turns or questions:
        raise ValueError(f"entry {title!r}: every question needs an answer")
    return Entry(title, names, tuple(turns))


def read_sections(path: Path) -> Sections:
    """Return a list file by its headings."""
    items: dict[str, list[str]] = {}
    text: dict[str, str] = {}
    for block in re.split(r"^## ", path.read_text("utf-8"), flags=re.M)[1:]:
        title, *lines = (line.strip() for line in block.splitlines() if line.strip())
        items[title] = [line[2:] for line in lines if line.startswith("- ")]
        text[title] = " ".join(line for line in lines if not line.startswith("- "))
    return Sections(items, text)


class Corpus:
    """Everything that can be asked and answered; draws training conversations from a `random.Random`."""

    def __init__(self, folder: Path = CORPUS) -> None:
        self.entries = [
            entry
            for path in sorted(folder.glob("*.md"))
            if path.stem not in {"templates", "offtopic"}
            for entry in read_entries(path)
        ]
        templates = read_sections(folder / "templates.md").items
        self._name_templates = templates["names"][:-HELD_OUT_NAMES]
        self._held_name_templates = templates["names"][-HELD_OUT_NAMES:]
        self._frames = templates["frames"]
        self._openings = [line.split(" | ") for line in templates["openings"]]
        self._synonyms = [line.split(" | ") for line in templates["synonyms"]]
        self._systems = templates["systems"]
        offtopic = read_sections(folder / "offtopic.md")
        self.refusal = offtopic.text["answer"]
        self._asks = offtopic.items["asks"]
        self._small, self._held_small = _split(offtopic.items["plain"])
        words = {kind: offtopic.text[kind].split("; ") for kind in ("thing", "place", "person", "task")}
        self._words = {kind: _split(values)[0] for kind, values in words.items()}
        self._held_words = {kind: _split(values)[1] for kind, values in words.items()}
        self._held = {_plain(question) for question, _ in self.held_out()}

    def texts(self) -> list[str]:
        """Every question (but those held out) and answer as written: what the tokenizer learns from."""
        turns = [turn for entry in self.entries for turn in entry.turns]
        asked = [
            question for turn in turns for question in turn.questions if _plain(question) not in self._held
        ]
        named = [
            template.format(name)
            for entry in self.entries
            for name in entry.names
            for template in self._name_templates
        ]
        filled = [self._off_topic(random.Random(seed)) for seed in range(400)]
        return [*asked, *named, *filled, *self._small, *(turn.answer for turn in turns), self.refusal]

    def held_out(self) -> list[tuple[str, str]]:
        """Questions about FlexServe that training never sees, with their answers."""
        pairs: list[tuple[str, str]] = []
        for index, entry in enumerate(self.entries):
            if len(entry.turns) > 1:
                continue
            turn = entry.turns[0]
            if index % HELD_OUT_EVERY == 0 and len(turn.questions) >= HELD_OUT_FROM:
                pairs.append((turn.questions[-1], turn.answer))
            pairs += [
                (t.format(name), turn.answer) for name in entry.names[:1] for t in self._held_name_templates
            ]
        return pairs

    def held_out_off_topic(self) -> list[str]:
        """Off-topic questions with words that training never sees."""
        rng = random.Random(7)
        filled = [_fill(ask, self._held_words, rng) for ask in self._asks if "{number}" not in ask]
        return [*self._held_small, *filled]

    def conversation(self, rng: random.Random) -> tuple[str | None, list[tuple[str, str]]]:
        """Draw a system prompt (or none) and the next question–answer turns of a conversation."""
        system = rng.choice(self._systems) if rng.random() < 0.08 else None
        if rng.random() < 0.16:
            return system, [(_noisy(self._off_topic(rng), rng), self.refusal)]
        entry = rng.choice(self.entries)
        return system, [(self._ask(entry, turn, rng), turn.answer) for turn in entry.turns]

    def _ask(self, entry: Entry, turn: Turn, rng: random.Random) -> str:
        if entry.names and rng.random() < 0.4:
            question = rng.choice(self._name_templates).format(rng.choice(entry.names))
        else:
            question = rng.choice(turn.questions)
            if len(question.split()) > 2:
                question = self._reword(question, rng)
        if _plain(question) in self._held:
            question = turn.questions[0]
        return _noisy(question, rng)

    def _reword(self, question: str, rng: random.Random) -> str:
        if rng.random() < 0.35:
            fits = [line for line in self._openings if any(question.startswith(f"{old} ") for old in line)]
            if fits:
                line = rng.choice(fits)
                old = max((old for old in line if question.startswith(f"{old} ")), key=len)
                question = rng.choice(line) + question[len(old) :]
        for line in self._synonyms:
            for word in line:
                if rng.random() < 0.3 and re.search(rf"\b{word}\b", question):
                    question = re.sub(rf"\b{word}\b", rng.choice(line), question, count=1)
                    break
        if rng.random() < 0.2:
            question = rng.choice(self._frames).format(question)
        return question

    def _off_topic(self, rng: random.Random) -> str:
        if rng.random() < 0.2:
            question = rng.choice(self._small)
        else:
            question = _fill(rng.choice(self._asks), self._words, rng)
        return rng.choice(self._frames).format(question) if rng.random() < 0.1 else question


def _split(values: list[str]) -> tuple[list[str], list[str]]:
    """Return what is for training and what is held out."""
    held = values[HELD_OUT_TOPICS - 1 :: HELD_OUT_TOPICS]
    return [value for value in values if value not in held], held


def _fill(ask: str, words: dict[str, list[str]], rng: random.Random) -> str:
    for kind, values in words.items():
        while f"{{{kind}}}" in ask:
            ask = ask.replace(f"{{{kind}}}", rng.choice(values), 1)
    while "{number}" in ask:
        ask = ask.replace("{number}", str(rng.randrange(1, 10 ** rng.randint(1, 4))), 1)
    return ask


def _plain(question: str) -> str:
    return " ".join(re.findall(r"[\w.-]+", question.lower().rstrip("?.!")))


def _noisy(question: str, rng: random.Random) -> str:
    """Return the question as people type it: a word left out, lower case, without its mark, with a slip."""
    words = question.split()
    if rng.random() < 0.1 and len(words) > 4:
        words.pop(rng.randrange(len(words)))
        question = " ".join(words)
    if rng.random() < 0.3:
        question = question.lower()
    if rng.random() < 0.3:
        question = question.rstrip("?.!")
    elif rng.random() < 0.05:
        question = question.rstrip(".") + rng.choice("!?")
    if rng.random() < 0.08 and len(question) > 12:
        question = _slip(question, rng)
    return question or "?"


def _slip(text: str, rng: random.Random) -> str:
    """Return `text` with one letter dropped, doubled or swapped with the next."""
    at = rng.randrange(1, len(text) - 1)
    before, here, after = text[:at], text[at], text[at + 1 :]
    return rng.choice([before + after, before + here + here + after, before + after[:1] + here + after[1:]])
