"""Vocabularies of the tokenizers that small models come with."""

from __future__ import annotations

import string
from collections.abc import Iterable

from gguf import GGUFWriter, TokenType

from flexserve.harness.vocabulary import CHAT_TEMPLATE, SPACE, make_vocabulary

SIZE = 640  # tokens at most
_BERT_CONTROLS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_NORMAL, _CONTROL = TokenType.NORMAL, TokenType.CONTROL


def write_tokens(writer: GGUFWriter, tokenizer: str) -> int:
    """Add the vocabulary of a tokenizer ("llama", "bert", "t5", "rwkv"); return its number of tokens."""
    writer.add_tokenizer_model(tokenizer)
    if tokenizer == "bert":
        return _write_bert(writer)
    if tokenizer == "rwkv":
        return _write_rwkv(writer)
    return _write_sentencepiece(writer, encoder=tokenizer == "t5")


def _write_sentencepiece(writer: GGUFWriter, *, encoder: bool) -> int:
    vocabulary = make_vocabulary(SIZE)
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary.tokens)
    # A unigram tokenizer wants log-probabilities: all about as likely, so that few pieces win over many.
    writer.add_token_scores([-5.0 - 0.001 * i for i in range(SIZE)] if encoder else vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    writer.add_bos_token_id(vocabulary.bos)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(not encoder)
    writer.add_add_eos_token(encoder)
    writer.add_chat_template(CHAT_TEMPLATE)
    return SIZE


def _write_bert(writer: GGUFWriter) -> int:
    letters = string.ascii_lowercase + string.digits
    words = [SPACE + letter for letter in letters + ".,?!"] + list(letters) + _words()
    tokens = _distinct([*_BERT_CONTROLS, *words])
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([_CONTROL] * 5 + [_NORMAL] * (len(tokens) - 5))
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)
    return len(tokens)


def _write_rwkv(writer: GGUFWriter) -> int:
    words = [word.replace(SPACE, " ") for word in _words() if len(word) > 1]
    tokens = _distinct(["<s>", *map(_escaped, range(256)), *words])
    writer.add_token_list(tokens)
    writer.add_token_types([_CONTROL] + [_NORMAL] * (len(tokens) - 1))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    return len(tokens)


def _escaped(byte: int) -> str:
    if byte == ord("\\"):
        return "\\\\"
    return chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}"


def _words() -> list[str]:
    vocabulary = make_vocabulary(SIZE)
    return vocabulary.tokens[vocabulary.unspoken :]


def _distinct(tokens: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(tokens))[:SIZE]
