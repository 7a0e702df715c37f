"""llama.cpp's grammars for llguidance, which reads a text in lexemes, each as long as it can become.

A grammar without recursion becomes one lexeme. Of a recursive one, the parts between its recursive rules
become lexemes. Where one of them could go on with what may also come behind it, it is taken apart, down
to single characters if need be: so the longest one is the right one.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from flexserve.trusted.text.gbnf import (
    Characters,
    Choice,
    GrammarError,
    Lexeme,
    Node,
    Ranges,
    Reference,
    Repeat,
    Sequence,
    normal,
    read,
    references,
)

MAX_LEXEMES = 512
_PLAIN = frozenset(map(ord, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"))


def translated(text: str) -> str:
    """Return rules for llguidance, of which "answer" admits what the GBNF grammar `text` does.

    Raises GrammarError for what is no grammar, or too large a one.
    """
    try:
        rules = read(text)
        cut = Cut(rules)
        while ambiguous := cut.ambiguous():
            cut = Cut(rules, cut.apart | ambiguous)
        return cut.written()
    except RecursionError:
        raise GrammarError("its rules refer to each other too deeply") from None


class Cut:
    """A grammar cut into lexemes; the nodes `apart` are none though they could be."""

    def __init__(self, rules: dict[str, Node], apart: frozenset[Node] = frozenset()) -> None:
        self.apart = apart
        self._rules = rules
        self._recursive = _recursive(rules)
        self._looks = _Looks(rules)
        self._numbers: dict[Node, int] = {}  # of lexemes
        self._root = self._parts(Reference("root"))
        self._bodies = {
            name: self._parts(body)
            for name, body in rules.items()
            if name in self._recursive or Reference(name) in apart
        }
        if len(self._numbers) > MAX_LEXEMES:
            raise GrammarError("it is too large for one with recursion")

    def _parts(self, node: Node) -> Node:
        """Return `node` with a Lexeme for each part that becomes one."""
        if isinstance(node, Characters) or (self._regular(node) and node not in self.apart):
            return Lexeme(self._numbers.setdefault(node, len(self._numbers)))
        match node:
            case Sequence(items):
                return Sequence(tuple(self._parts(one) for one in self._runs(node, items)))
            case Choice(ways):
                return Choice(tuple(map(self._parts, ways)))
            case Repeat(item, least, most):
                return Repeat(self._parts(item), least, most)
        return node  # a rule that is recursive, or taken apart

    def _regular(self, node: Node) -> bool:
        return self._recursive.isdisjoint(references(node))

    def _runs(self, node: Sequence, items: tuple[Node, ...]) -> Iterator[Node]:
        """Yield the items of a sequence, those joined that follow each other in one lexeme."""
        if node in self.apart:
            yield from items
            return
        for regular, run in itertools.groupby(items, self._regular):
            joined = tuple(run)
            whole = joined[0] if len(joined) == 1 else Sequence(joined)
            if regular and whole not in self.apart:
                yield whole
            else:
                yield from joined

    def ambiguous(self) -> frozenset[Node]:
        """Return the lexemes that have to be taken apart; none when the longest one is always right."""
        if not self._bodies:
            return frozenset()
        nodes = list(self._numbers)
        looks = [self._looks.of(node) for node in nodes]
        places = _Places(self._bodies, [look.empty for look in looks])
        following = places.following(self._root)
        after = [_union(looks[other].first for other in following[number]) for number in range(len(nodes))]
        found = {number for number, look in enumerate(looks) if _meet(look.further, after[number])}
        for pair in places.together(self._root, following, [look.first for look in looks]):
            for one, other in itertools.permutations(pair):
                if _meet(looks[one].first, looks[other].first) and _meet(after[one], looks[other].later):
                    found.add(other)
        return frozenset(nodes[number] for number in found)

    def written(self) -> str:
        """Return it as rules for llguidance; the first is "answer"."""
        names = {name: number for number, name in enumerate(self._rules)}
        lexemes = list(self._numbers)
        empty = [self._looks.of(node).empty for node in lexemes]
        lines = [f"answer: {_rule(self._root, names, empty)}"]
        lines += [f"r{names[name]}: {_rule(body, names, empty)}" for name, body in self._bodies.items()]
        used = _reached(self._rules, itertools.chain.from_iterable(map(references, lexemes)))
        lines += [f"R{names[name]}: {_expression(self._rules[name], names)}" for name in sorted(used)]
        lines += [f"L{number}: {_expression(node, names)}" for node, number in self._numbers.items()]
        return "\n".join(lines)


def _reached(rules: Mapping[str, Node], names: Iterable[str]) -> set[str]:
    """Return `names` and those of the rules that these need."""
    found: set[str] = set()
    wanted = list(names)
    while wanted:
        name = wanted.pop()
        if name not in found:
            found.add(name)
            wanted += references(rules[name])
    return found


def _recursive(rules: Mapping[str, Node]) -> frozenset[str]:
    """Return the rules that need one that needs itself."""
    needed = {name: _reached(rules, references(body)) for name, body in rules.items()}
    loops = {name for name, others in needed.items() if name in others}
    return frozenset(name for name, others in needed.items() if name in loops or others & loops)


# ---- what a lexeme may look like -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Look:
    """Whether it may be empty; what it may begin with; what may come later in it; and with what it may go on
    where it could also end. The last two may have characters too many.
    """

    empty: bool
    first: Ranges = ()
    later: Ranges = ()
    further: Ranges = ()


_EMPTY = _Look(empty=True)


class _Looks:
    """How the regular parts of a grammar look."""

    def __init__(self, rules: Mapping[str, Node]) -> None:
        self._rules = rules
        self._known: dict[Node, _Look] = {}

    def of(self, node: Node) -> _Look:
        """Return how `node` looks."""
        if node not in self._known:
            self._known[node] = self._look(node)
        return self._known[node]

    def _look(self, node: Node) -> _Look:
        match node:
            case Characters(ranges):
                return _Look(empty=False, first=ranges)
            case Sequence(items):
                return functools.reduce(_behind, map(self.of, items), _EMPTY)
            case Choice(ways):
                return functools.reduce(_beside, map(self.of, ways))
            case Reference(name):
                return self.of(self._rules[name])
            case Repeat(item, least, most):
                return _EMPTY if most == 0 else _repeated(self.of(item), least, most)
        raise TypeError(node)


def _behind(one: _Look, other: _Look) -> _Look:
    further = [other.further]
    if other.empty:
        further += [one.further, other.first]
    if _meet(one.further, other.first):  # where the first ends is open
        further += [one.first, one.later, other.first, other.later]
    return _Look(
        one.empty and other.empty,
        _union([one.first, other.first if one.empty else ()]),
        _union([one.later, other.later, other.first if one.first else ()]),
        _union(further),
    )


def _beside(one: _Look, other: _Look) -> _Look:
    further = [one.further, other.further]
    further += [other.first] if one.empty else []
    further += [one.first] if other.empty else []
    if _meet(one.first, other.first):  # which of them it is is open
        further += [one.later, other.later]
    return _Look(
        one.empty or other.empty,
        _union([one.first, other.first]),
        _union([one.later, other.later]),
        _union(further),
    )


def _repeated(once: _Look, least: int, most: int | None) -> _Look:
    looks = once if most == 1 else _behind(once, once)
    goes_on = most != least or once.empty
    further = _union([looks.further, once.first]) if goes_on else looks.further
    return _Look(least == 0 or once.empty, looks.first, looks.later, further)


def _union(many: Iterable[Ranges]) -> Ranges:
    return normal(list(itertools.chain.from_iterable(many)))


def _meet(one: Ranges, other: Ranges) -> bool:
    """Return whether two sets of characters have one in common."""
    at = 0
    for first, last in one:
        while at < len(other) and other[at][1] < first:
            at += 1
        if at < len(other) and other[at][0] <= last:
            return True
    return False


# ---- which lexemes come where --------------------------------------------------------------------------


class _Places:
    """Which lexemes parts of a grammar may begin with, and which may come behind each. `empty`: by lexeme."""

    def __init__(self, bodies: Mapping[str, Node], empty: list[bool]) -> None:
        self._bodies, self._empty = bodies, empty
        self._of_rules: dict[str, tuple[frozenset[int], bool]] = dict.fromkeys(bodies, (frozenset(), False))
        _until_stable(self._widen_beginnings)

    def beginnings(self, part: Node) -> frozenset[int]:
        """Return the lexemes that `part` may begin with."""
        return self._begins(part)[0]

    def following(self, root: Node) -> dict[int, set[int]]:
        """Return by lexeme those that may come behind it in a text that is `root`."""
        behind: dict[int | str, set[int]] = defaultdict(set)

        def widen() -> bool:
            before = sum(map(len, behind.values()))
            self._spread(root, set(), behind)
            for name, body in self._bodies.items():
                self._spread(body, behind[name], behind)
            return sum(map(len, behind.values())) > before

        _until_stable(widen)
        return {number: behind[number] for number in range(len(self._empty))}

    def together(
        self, root: Node, following: Mapping[int, set[int]], first: list[Ranges]
    ) -> set[tuple[int, int]]:
        """Return the pairs of lexemes that may come at one place of a text that is `root`; maybe too many.

        `following` as `following` has it, `first`: what each lexeme may begin with. Two that may be the same
        text have what follows either come at one place, too.
        """
        behind = {number: frozenset(others) for number, others in following.items()}
        pairs: set[tuple[int, int]] = set()
        met: set[tuple[frozenset[int], frozenset[int]]] = set()
        waiting = [(one, one) for one in {self.beginnings(root), *behind.values()}]
        while waiting:
            ones, others = waiting.pop()
            if (ones, others) not in met:
                met.add((ones, others))
                new = {(min(pair), max(pair)) for pair in itertools.product(ones, others)} - pairs
                new = {pair for pair in new if pair[0] != pair[1]}
                pairs |= new
                waiting += [(behind[a], behind[b]) for a, b in new if _meet(first[a], first[b])]
        return pairs

    def _widen_beginnings(self) -> bool:
        found = {name: self._begins(body) for name, body in self._bodies.items()}
        changed, self._of_rules = found != self._of_rules, found
        return changed

    def _begins(self, part: Node) -> tuple[frozenset[int], bool]:
        """Return the lexemes that `part` may begin with, and whether it may be empty."""
        match part:
            case Lexeme(number):
                return frozenset((number,)), self._empty[number]
            case Reference(name):
                return self._of_rules[name]
            case Sequence(parts):
                found: frozenset[int] = frozenset()
                for one in parts:
                    more, empty = self._begins(one)
                    found |= more
                    if not empty:
                        return found, False
                return found, True
            case Choice(ways):
                each = [self._begins(way) for way in ways]
                return frozenset().union(*(one for one, _ in each)), any(empty for _, empty in each)
            case Repeat(item, least):
                more, empty = self._begins(item)
                return more, empty or least == 0
        raise TypeError(part)

    def _spread(self, part: Node, after: set[int], behind: dict[int | str, set[int]]) -> None:
        """Record that the lexemes `after` may come behind `part`."""
        match part:
            case Lexeme(number):
                behind[number] |= after
            case Reference(name):
                behind[name] |= after
            case Sequence(parts):
                for one in reversed(parts):
                    self._spread(one, after, behind)
                    more, empty = self._begins(one)
                    after = after | more if empty else set(more)
            case Choice(ways):
                for way in ways:
                    self._spread(way, after, behind)
            case Repeat(item, _, most):
                again = set() if most == 1 else self._begins(item)[0]
                self._spread(item, after | again, behind)


def _until_stable(widen: Callable[[], bool]) -> None:
    while widen():
        pass


# ---- as text -------------------------------------------------------------------------------------------


def _rule(part: Node, names: Mapping[str, int], empty: list[bool]) -> str:
    """Return a part of a rule; a lexeme that may be empty is one that may be absent."""
    match part:
        case Lexeme(number):
            return f"L{number}?" if empty[number] else f"L{number}"
        case Reference(name):
            return f"r{names[name]}"
        case Sequence(parts):
            return " ".join(_rule(one, names, empty) for one in parts) or '""'
        case Choice(ways):
            return "(" + " | ".join(_rule(way, names, empty) for way in ways) + ")"
        case Repeat(item, least, most):
            return f"({_rule(item, names, empty)}){_counted(least, most)}"
    raise TypeError(part)


def _expression(node: Node, names: Mapping[str, int]) -> str:
    """Return a regular part."""
    match node:
        case Characters(ranges):
            return "/[" + "".join(map(_range, ranges)) + "]/"
        case Reference(name):
            return f"R{names[name]}"
        case Sequence(items):
            return " ".join(_expression(one, names) for one in items) or '""'
        case Choice(ways):
            return "(" + " | ".join(_expression(way, names) for way in ways) + ")"
        case Repeat(item, least, most):
            return f"({_expression(item, names)}){_counted(least, most)}"
    raise TypeError(node)


def _counted(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"


def _range(ends: tuple[int, int]) -> str:
    return "-".join(_escaped(end) for end in sorted(set(ends)))


def _escaped(code: int) -> str:
    return chr(code) if code in _PLAIN else f"\\x{{{code:X}}}"
