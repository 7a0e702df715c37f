"""Measures a GGUF of FlexServe Tiny through llama.cpp: answers, tokenization, and what wrong bytes do.

python evaluate.py flexserve-tiny.gguf --damages 40
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from corpus import Corpus
from vocabulary import SPECIALS, Vocabulary

ODD_TEXTS = (
    "",
    " ",
    "  two  spaces ",
    "\n\n\ttab",
    "don't I'll",
    "naïve Ωmega 漢字 🙂",
    "a1b22c333",
    "x" * 300,
    "<b>&amp;</b>",
    "\x00\x7f",
)
PROBES = (
    "What is Flex-Mem?",
    "What is FlexServe?",
    "What is Flex-NPU?",
    "What does the monitor do?",
    "Is it safe against a hostile kernel on Linux?",
    "What is evicted first?",
    "What happens if a restored byte is wrong?",
    "How do I start the server?",
    "Who are you?",
    "What is the capital of France?",
)
PAGE = 4096  # bytes
GRANULE = 64 * PAGE  # bytes: small beside a real granule, so that it is a small part of this model too


def open_model(path: Path) -> llama_cpp.Llama:
    """Load `path` with the whole context and one thread."""
    return llama_cpp.Llama(str(path), n_ctx=0, n_threads=1, n_threads_batch=1, verbose=False)


def ask(model: llama_cpp.Llama, question: str) -> tuple[str, str]:
    """Return the greedy answer and why it ended ("stop" or "length")."""
    choice = model.create_chat_completion(
        [{"role": "user", "content": question}], temperature=0.0, max_tokens=128
    )["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


def report_answers(name: str, model: llama_cpp.Llama, pairs: Iterable[tuple[str, str]]) -> None:
    """Print how many questions are answered word for word, and the others."""
    results = [(question, answer, ask(model, question)) for question, answer in pairs]
    missed = [(question, said) for question, answer, said in results if said != (answer, "stop")]
    print(f"{name}: {len(results) - len(missed)} of {len(results)} answered word for word")
    for question, (said, end) in missed:
        print(f"    {question}  ->  {said} [{end}]")


def report_tokenization(model: llama_cpp.Llama, corpus: Corpus) -> None:
    """Print for how many texts llama.cpp's tokens are not those that training used."""
    vocabulary = Vocabulary.learn(corpus.texts(), model.n_vocab())
    texts = [*corpus.texts(), *ODD_TEXTS]
    prompts = [f"{SPECIALS[1]}user\n{text}{SPECIALS[2]}\n" for text in texts]
    wrong = sum(
        model.tokenize(text.encode(), add_bos=False, special=False) != vocabulary.encode(text)
        for text in texts
    ) + sum(
        model.tokenize(prompt.encode(), add_bos=False, special=True) != vocabulary.message("user", text)
        for prompt, text in zip(prompts, texts, strict=True)
    )
    print(f"tokenization: {wrong} of {2 * len(texts)} texts differ")


def flip_byte(data: bytearray, at: int) -> None:
    """Invert the byte at `at`, in place."""
    data[at] ^= 0xFF


def zero_page(data: bytearray, at: int) -> None:
    """Zero the page that holds the byte at `at`, in place: a restore that silently did nothing."""
    _overwrite(data, at, PAGE, bytes(PAGE))


def zero_granule(data: bytearray, at: int) -> None:
    """Zero a larger piece around the byte at `at`, in place."""
    _overwrite(data, at, GRANULE, bytes(GRANULE))


def scramble_page(data: bytearray, at: int) -> None:
    """Fill the page that holds the byte at `at` with noise, in place: ciphertext that nobody decrypted."""
    _overwrite(data, at, PAGE, random.Random(at).randbytes(PAGE))


def _overwrite(data: bytearray, at: int, size: int, content: bytes) -> None:
    start = at // size * size
    stop = min(start + size, len(data))
    data[start:stop] = content[: stop - start]


def fingerprint(path: Path) -> tuple[list[str], bytes]:
    """Return the answers to the probes, and the logits after the last probe's prompt as bytes."""
    model = open_model(path)
    answers = [ask(model, question)[0] for question in PROBES]
    model.reset()
    model.eval(model.tokenize(" ".join(PROBES).encode(), add_bos=False))
    logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(model.ctx), shape=(model.n_vocab(),)).tobytes()
    model.close()
    return answers, logits


def report_damage(path: Path, damage: Callable[[bytearray, int], None], trials: int) -> None:
    """Print how often `damage` at a random place of the tensor data changes logits and answers."""
    start = gguf.GGUFReader(path).data_offset
    original = path.read_bytes()
    answers, logits = fingerprint(path)
    rng = random.Random(1)
    changed_logits = changed_answers = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "damaged.gguf"
        for _ in range(trials):
            data = bytearray(original)
            head = bytes(data[:start])
            damage(data, rng.randrange(start, len(data)))
            data[:start] = head  # the metadata stays whole: the file must still load
            copy.write_bytes(data)
            damaged_answers, damaged_logits = fingerprint(copy)
            changed_logits += damaged_logits != logits
            changed_answers += damaged_answers != answers
    print(
        f"{damage.__name__}: of {trials}, {changed_logits} change logits, {changed_answers} change an answer"
    )


def main() -> None:
    """Print all measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="GGUF file")
    parser.add_argument(
        "--damages", type=int, default=0, help="damaged copies to try, of each kind (default: none)"
    )
    arguments = parser.parse_args()
    corpus = Corpus()
    model = open_model(arguments.model)
    for question in PROBES:
        print(f"{question}  ->  {ask(model, question)[0]}")
    known = [(entry.turns[0].questions[0], entry.turns[0].answer) for entry in corpus.entries]
    report_answers("known questions", model, known)
    report_answers("held-out questions", model, corpus.held_out())
    off_topic = ((question, corpus.refusal) for question in corpus.held_out_off_topic())
    report_answers("held-out off-topic questions", model, off_topic)
    report_tokenization(model, corpus)
    if arguments.damages:
        for damage in (flip_byte, zero_page, zero_granule, scramble_page):
            report_damage(arguments.model, damage, arguments.damages)


if __name__ == "__main__":
    main()
