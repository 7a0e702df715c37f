"""llama.cpp's grammars by llguidance: they admit what llama.cpp itself admits, and cost what they may."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import re
from collections.abc import Iterator

import pytest
from grammars import Reader, grammar_of, shared_reader
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from llama_cpp import llama_cpp as lib
from templates import renderer

from flexserve.errors import CallerError
from flexserve.trusted.text.gbnf import Characters, Choice, Node, Reference, Repeat, Sequence, read
from flexserve.trusted.text.grammar import Confinement
from flexserve.trusted.text.lexemes import translated

ARITHMETIC = """
# as in llama.cpp's grammars/arithmetic.gbnf
root  ::= (expr "=" ws term "\\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \\t\\n]*
"""
JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"""
CHESS = r"""
root   ::= "1. " move " " move "\n" ([1-9] [0-9]? ". " move " " move "\n")+
move   ::= (pawn | nonpawn | castle) [+#]?
nonpawn ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
pawn   ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?
castle ::= "O-O" "-O"?
"""


class Plain:
    """llama.cpp's own reading of a grammar, over a vocabulary that has all bytes."""

    def __init__(self, reader: Reader, gbnf: str) -> None:
        self._reader = reader
        self._sampler = lib.llama_sampler_init_grammar(reader.vocabulary.address, gbnf.encode(), b"root")
        self.understood = bool(self._sampler)  # it refuses left recursion

    def admits(self, text: str) -> bool:
        """Return whether `text`, and then the end, is what the grammar allows, byte by byte."""
        sampler = lib.llama_sampler_clone(self._sampler)
        try:
            for token in [*self._reader._bytes(text), self._reader.eos]:
                data = (lib.llama_token_data * 1)(lib.llama_token_data(token, 1.0, 0.0))
                array = lib.llama_token_data_array(data, 1, -1, False)
                lib.llama_sampler_apply(sampler, ctypes.byref(array))
                if data[0].logit < 0:
                    return False
                if token != self._reader.eos:
                    lib.llama_sampler_accept(sampler, token)
            return True
        finally:
            lib.llama_sampler_free(sampler)

    def close(self) -> None:
        if self.understood:
            lib.llama_sampler_free(self._sampler)


def ours(gbnf: str) -> str:
    return grammar_of(translated(gbnf), "answer")


@pytest.mark.parametrize(
    ("gbnf", "good", "bad"),
    [
        ('root ::= "yes" | "no"', ["yes", "no"], ["", "ye", "yesno", "maybe"]),
        ('root ::= "a"{5,5}', ["aaaaa"], ["aaaa", "aaaaaa"]),
        ('root ::= "a"{2} "b"{1,} "c"{0,2}', ["aab", "aabbbcc"], ["ab", "aac", "aabccc"]),
        ("root ::= [a-c]+ [^a-z]", ["abc1", "a!"], ["a", "1", "abd"]),
        ("root ::= .?", ["", "x", "\n", "é", "😸"], ["xx"]),
        (r'root ::= "\x41\u00e9\U0001F638\n\"\\"', ['Aé😸\n"\\'], ["A"]),
        (r"root ::= [\]\[\-^]+", ["][^-"], ["a"]),
        ("root ::= a b?\na ::= [x-]\nb ::= a a", ["x", "-", "x-x"], ["xx", ""]),
        ('root ::= ( # a comment\n  "a" |\n  "b"\n)', ["a", "b"], ["c"]),
        ('root ::= "(" root ")" | ""', ["", "()", "((()))"], ["(", ")(", "(()"]),
        ('root ::= root "a" | "b"', ["b", "baaa"], ["a", ""]),
        ('root ::= "a" root "a" | "a"', ["a", "aaa", "aaaaa"], ["aa", ""]),
        ('root ::= [a-z]+ "!" root | "z" "!"', ["z!", "a!z!", "zz!z!"], ["a!", "z"]),
        ('root ::= "ab" root | "a" "bc" | "abc" "d"', ["abc", "ababc", "abcd", "ababcd"], ["ab", "abab"]),
        ('root ::= ([ab] | s)*\ns ::= "a" "ab" s', ["", "aab", "baab", "aaba"], ["c", "aac"]),
        ('root ::= ([ab] | s)*\ns ::= "a" "ab" s "c" | "d"', ["aab", "aabdc", "aaabdcb"], ["abdc", "c"]),
        (ARITHMETIC, ["x=1\n", "(x +y) *2 = z\n", "a1=b\nc=d\n"], ["x=", "x=1", "1x=2\n", "()=x\n"]),
        (JSON, ["{}", '{"a": [1, -2.5e3, "x\\n"], "b": {"c": null}}', "{\n\t}"], ["[]", '{"a"}', "{a: 1}"]),
        (CHESS, ["1. e4 e5\n2. Nf3 O-O-O+\n"], ["1. e4 e5\n", "2. e4 e5\n"]),
    ],
)
def test_a_grammar_admits_its_texts_and_no_others(
    reader: Reader, gbnf: str, good: list[str], bad: list[str]
) -> None:
    plain = Plain(reader, gbnf)
    for text in [*good, *bad]:
        assert reader.admits(ours(gbnf), text) == (text in good), text
        assert not plain.understood or plain.admits(text) == (text in good), text
    plain.close()


ITEMS: st.SearchStrategy[str] = st.deferred(
    lambda: (
        st.sampled_from(['"a"', '"ab"', '"b"', '""', "[ab]", "[^a]", "root", "r", "s"])
        | st.tuples(ITEMS, st.sampled_from(["*", "+", "?", "{2}", "{0,2}"])).map(
            lambda it: f"({it[0]}){it[1]}"
        )
        | st.lists(ITEMS, min_size=1, max_size=3).map(" ".join)
        | st.lists(ITEMS, min_size=2, max_size=3).map(lambda ways: f"({' | '.join(ways)})")
    )
)


LONGEST = 4
TEXTS = ["".join(text) for length in range(LONGEST + 1) for text in itertools.product("ab", repeat=length)]


def language(rules: dict[str, Node]) -> set[str]:
    """Return which of TEXTS a grammar admits, by the book: what its rules say, until nothing is new."""
    known: dict[str, frozenset[str]] = dict.fromkeys(rules, frozenset())
    while (grown := {name: _texts(body, known) for name, body in rules.items()}) != known:
        known = grown
    return set(known["root"])


def _texts(node: Node, known: dict[str, frozenset[str]]) -> frozenset[str]:
    match node:
        case Characters(ranges):
            return frozenset(one for one in "ab" if any(low <= ord(one) <= high for low, high in ranges))
        case Reference(name):
            return known[name]
        case Sequence(items):
            return functools.reduce(_joined, (_texts(item, known) for item in items), frozenset({""}))
        case Choice(ways):
            return frozenset().union(*(_texts(way, known) for way in ways))
        case Repeat(item, least, most):
            once = _texts(item, known)
            found = functools.reduce(_joined, [once] * least, frozenset({""}))
            for _ in range(len(TEXTS) if most is None else most - least):
                if (more := found | _joined(found, once)) == found:
                    break
                found = more
            return found
    raise TypeError(node)


def _joined(one: frozenset[str], other: frozenset[str]) -> frozenset[str]:
    return frozenset(a + b for a in one for b in other if len(a) + len(b) <= LONGEST)


@settings(max_examples=100)
@given(st.tuples(ITEMS, ITEMS, ITEMS))
def test_whatever_a_grammar_says_is_admitted_and_nothing_else(bodies: tuple[str, str, str]) -> None:
    gbnf = "\n".join(f"{name} ::= {body}" for name, body in zip(("root", "r", "s"), bodies, strict=True))
    assert admitted(shared_reader(), ours(gbnf)) == language(read(gbnf))


def admitted(reader: Reader, rules: str) -> set[str]:
    """Return which of TEXTS `rules` admit. Those that can be read in very many ways are not tried."""
    found: set[str] = set()
    refused: set[str] = set()  # texts that none that is admitted begins with
    try:
        for text in TEXTS:
            if len(text) == LONGEST and not any(text.startswith(beginning) for beginning in refused):
                _follow(reader, Confinement(reader.tree, rules), text, found, refused)
    except CallerError as error:
        assume("nothing fits it" in str(error))
    return found


def _follow(reader: Reader, at: Confinement, text: str, found: set[str], refused: set[str]) -> None:
    """Note which beginnings of a text are admitted, and the first one that none begins with."""
    for length, token in enumerate(reader._bytes(text)):
        if at.admits(reader.eos):
            found.add(text[:length])
        if not at.admits(token):
            refused.add(text[: length + 1])
            return
        at.accept(token)
    if at.admits(reader.eos):
        found.add(text)


@pytest.mark.parametrize(
    "gbnf",
    [
        "",
        "root",
        'root ::= "a',
        "root ::= [a",
        "root ::= (",
        'root ::= ("a"',
        'root ::= "a")',
        "root ::= other",
        'other ::= "a"',
        'root ::= "a"{2001}',
        'root ::= "a"{3,2}',
        'root ::= "a"{,2}',
        "root ::= [z-a]",
        "root ::= []",
        r'root ::= "\q"',
        r'root ::= "\U99999999"',
        r'root ::= "\ud800"',
        "root ::= <think>",
        'root = "a"',
        "%llguidance {}",
        "(" * 100 + '"a"' + ")" * 100,
        "root ::= " + "(" * 100 + '"a"' + ")" * 100,
        "root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1}" for n in range(3000)),
        "root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1}" for n in range(2000)) + '\nr2000 ::= "a"',
    ],
)
def test_what_is_no_grammar_is_refused_without_quoting_it(gbnf: str) -> None:
    with pytest.raises(CallerError) as caught:
        _prepared(gbnf)
    assert caught.value.code == "grammar_unsupported"
    assert "think" not in str(caught.value)


def _prepared(gbnf: str) -> str:
    rules = renderer().translate(gbnf)
    renderer().compile(grammar_of(rules, "answer"))
    return rules


def _hostile() -> Iterator[str]:
    yield "root ::= " + " | ".join(f'"{n}"' for n in range(5000))
    yield "root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1} r{n + 1}" for n in range(60)) + '\nr60 ::= "a"'
    yield 'root ::= ((("a"{2000}){2000}){2000}){2000}'
    yield "root ::= (((([a-z]*)*)*)*)* root | (root root root root)*"
    yield "root ::= " + " ".join('"a"?' for _ in range(2000)) + " " + " ".join('"a"' for _ in range(2000))
    yield "root ::= " + " | ".join(f'[a-z]* "{chr(97 + n % 26)}" root' for n in range(800)) + ' | "x"'
    yield "\n".join(
        [f'r{n} ::= [a-z]+ r{(n + 1) % 700} | [a-y]+ r{(n + 7) % 700} | "!"' for n in range(700)]
        + ["root ::= r0"]
    )


@pytest.mark.parametrize("gbnf", list(_hostile()))
def test_a_grammar_that_takes_too_much_costs_its_request_and_nobody_else(gbnf: str) -> None:
    with contextlib.suppress(CallerError):
        _prepared(gbnf)
    assert _prepared('root ::= "a"')


def test_what_is_not_ambiguous_is_read_in_one_go() -> None:
    """Character by character, a large vocabulary would cost more for a token than it may."""
    lexemes = [line for line in translated(JSON).splitlines() if re.match("L[0-9]", line)]
    assert len(lexemes) <= 11
