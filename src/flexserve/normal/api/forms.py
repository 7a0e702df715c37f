"""What OpenAI's chat and plain completions look like on the wire."""

from __future__ import annotations

import codecs
import hashlib
import math
import time
import uuid

from flexserve.normal.api.answering import Json, NumberedForm
from flexserve.normal.api.errors import HttpError
from flexserve.normal.api.pace import timings_of
from flexserve.normal.api.parts import Arguments, CallBegun, Part, Parts, Said, Thought
from flexserve.normal.api.sse import DONE
from flexserve.protocol.answers import Choice, Delta, Finished, Started, TokenLogprob

_LEAST_LOGPROB = -9999.0  # what OpenAI writes for "impossible": JSON has no infinity


class _OpenAIForm(NumberedForm):
    """What both forms have in common. `model` is what the client called it, `engine` what computes."""

    ending = DONE

    def __init__(self, model: str, *, id_prefix: str, kind: str, with_usage: bool, engine: str) -> None:
        self._kind = kind  # the "object" of a stream's chunks
        self._with_usage = with_usage  # at the end of a stream
        self._head: Json = {
            "id": f"{id_prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint(engine),
        }

    def failure(self, error: HttpError) -> Json:
        """Return the error as one that comes by status."""
        return error.body()

    def place(self, chunk: Json, index: int, head: Json) -> None:
        """Give the chunk of answer `index` its number, and what the first one's had."""
        if not head:
            head.update({name: chunk[name] for name in self._head} | {"object": chunk["object"]})
        chunk.update(head)
        for choice in chunk["choices"]:
            choice["index"] = index

    def joined(self, wholes: list[Json], usage: Json) -> Json:
        """Return the choices of all answers in one."""
        choices = [choice for whole in wholes for choice in whole["choices"]]
        for index, choice in enumerate(choices):
            choice["index"] = index
        return {**wholes[0], "choices": choices, "usage": usage}

    def _usage(self, finished: Finished) -> list[Json]:
        """Return the chunk of usage, which has no choices, where it is wanted."""
        return [{**self._object(self._kind, []), "usage": usage_of(finished)}] if self._with_usage else []

    def _object(self, kind: str, choices: list[Json]) -> Json:
        return {**self._head, "object": kind, "choices": choices}


class ChatForm(_OpenAIForm):
    """/v1/chat/completions: thoughts are "reasoning_content"."""

    def __init__(
        self,
        model: str,
        *,
        with_logprobs: bool,
        with_usage: bool = False,
        parts: Parts | None = None,
        engine: str = "",
        verbose: Json | None = None,
    ) -> None:
        """`verbose`: what a debugging client is told besides."""
        kind = "chat.completion.chunk"
        super().__init__(model, id_prefix="chatcmpl", kind=kind, with_usage=with_usage, engine=engine)
        self._with_logprobs, self._parts = with_logprobs, parts or Parts(most_calls=0)
        self._calls = 0
        self._verbose = verbose

    def began(self, started: Started) -> None:
        """Record how the answer is written."""
        self._parts.began(started)

    def opening(self) -> list[Json]:
        """Return the role, which comes before any text."""
        return [self._chunk({"role": "assistant", "content": None})]

    def chunks(self, delta: Delta) -> list[Json]:
        """Return the chunks for more text: one for each part of the answer."""
        found = [self._chunk(part) for part in self._deltas(self._parts.feed(delta.text))]
        if delta.choices:
            logprobs = self._logprobs(delta.choices)
            if found:
                found[0]["choices"][0]["logprobs"] = logprobs
            else:
                found = [self._chunk({}, logprobs=logprobs)]
        return found

    def blank(self) -> Json:
        """Return a chunk that adds nothing."""
        return self._chunk({})

    def closing(self, finished: Finished) -> list[Json]:
        """Return what was held back, and the chunk with the reason to stop."""
        rest = self._deltas(self._parts.finish())
        end = self._chunk({}, reason=self._reason(finished))
        chunks = [*map(self._chunk, rest), end, *self._usage(finished)]
        chunks[-1] |= self._more(finished)
        return chunks

    def whole(self, deltas: list[Delta], finished: Finished) -> Json:
        """Return the answer as one object, usage included."""
        parts = self._parts.feed("".join(delta.text for delta in deltas)) + self._parts.finish()
        calls: list[Json] = []
        texts = {"content": "", "reasoning_content": ""}
        for part in self._deltas(parts):
            for call in part.pop("tool_calls", ()):
                if "id" in call:
                    calls.append({key: value for key, value in call.items() if key != "index"})
                else:
                    calls[-1]["function"]["arguments"] += call["function"]["arguments"]
            for name, text in part.items():
                texts[name] += text
        message: Json = {"role": "assistant", "content": texts["content"], "refusal": None}
        if texts["reasoning_content"]:
            message["reasoning_content"] = texts["reasoning_content"]
        if calls:
            message |= {"content": texts["content"] or None, "tool_calls": calls}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs([choice for delta in deltas for choice in delta.choices]),
            "finish_reason": self._reason(finished),
        }
        whole = {**self._object("chat.completion", [choice]), "usage": usage_of(finished)}
        return {**whole, **self._more(finished)}

    def _more(self, finished: Finished) -> Json:
        """Return what llama-server says besides."""
        verbose = {} if self._verbose is None else {"__verbose": self._verbose}
        return {"timings": timings_of(finished), **verbose}

    def _deltas(self, parts: list[Part]) -> list[Json]:
        """Return the delta of each part."""
        deltas: list[Json] = []
        for part in parts:
            match part:
                case Said():
                    deltas.append({"content": part.text})
                case Thought():
                    deltas.append({"reasoning_content": part.text})
                case CallBegun():
                    self._calls += 1
                    function = {"name": part.name, "arguments": ""}
                    deltas.append(self._call({"id": part.id, "type": "function", "function": function}))
                case Arguments():
                    deltas.append(self._call({"function": {"arguments": part.text}}))
        return deltas

    def _call(self, call: Json) -> Json:
        return {"tool_calls": [{"index": self._calls - 1, **call}]}

    def _reason(self, finished: Finished) -> str:
        return "tool_calls" if self._calls and finished.reason == "stop" else finished.reason

    def _chunk(self, delta: Json, *, logprobs: Json | None = None, reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._object(self._kind, [choice])

    def _logprobs(self, choices: list[Choice]) -> Json | None:
        if not self._with_logprobs:
            return None
        content = [
            {**token_json(choice.token), "top_logprobs": [token_json(other) for other in choice.top]}
            for choice in choices
        ]
        return {"content": content, "refusal": None}


class CompletionForm(_OpenAIForm):
    """/v1/completions."""

    def __init__(
        self, model: str, *, with_logprobs: bool, with_usage: bool = False, engine: str = ""
    ) -> None:
        kind = "text_completion"
        super().__init__(model, id_prefix="cmpl", kind=kind, with_usage=with_usage, engine=engine)
        self._with_logprobs = with_logprobs
        self._offset = 0  # characters that the tokens seen so far made whole
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def opening(self) -> list[Json]:
        """Return nothing: this form begins with text."""
        return []

    def chunks(self, delta: Delta) -> list[Json]:
        """Return the chunk for more text."""
        return [self._object(self._kind, [self._choice(delta.text, delta.choices, None)])]

    def blank(self) -> Json:
        """Return a chunk that adds nothing."""
        return self._object(self._kind, [self._choice("", [], None)])

    def closing(self, finished: Finished) -> list[Json]:
        """Return the chunk with the reason to stop."""
        end = self._object(self._kind, [self._choice("", [], finished.reason)])
        chunks = [end, *self._usage(finished)]
        chunks[-1]["timings"] = timings_of(finished)
        return chunks

    def whole(self, deltas: list[Delta], finished: Finished) -> Json:
        """Return the answer as one object, usage included."""
        text = "".join(delta.text for delta in deltas)
        choices = [choice for delta in deltas for choice in delta.choices]
        choice = self._choice(text, choices, finished.reason)
        took = {"usage": usage_of(finished), "timings": timings_of(finished)}
        return {**self._object(self._kind, [choice]), **took}

    def _choice(self, text: str, choices: list[Choice], reason: str | None) -> Json:
        return {"index": 0, "text": text, "logprobs": self._logprobs(choices), "finish_reason": reason}

    def _logprobs(self, choices: list[Choice]) -> Json | None:
        if not self._with_logprobs:
            return None
        offsets = []
        for choice in choices:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(choice.token.piece))
        return {
            "tokens": [_text(choice.token) for choice in choices],
            "token_logprobs": [_finite(choice.token.logprob) for choice in choices],
            "top_logprobs": [
                {_text(top): _finite(top.logprob) for top in choice.top}
                if choice.token.logprob is not None
                else None
                for choice in choices
            ],
            "text_offset": offsets,
        }


def token_json(token: TokenLogprob) -> Json:
    """Return a token with its bytes and log-probability, as OpenAI's clients read it."""
    return {"token": _text(token), "logprob": _finite(token.logprob), "bytes": list(token.piece)}


def _text(token: TokenLogprob) -> str:
    """Return the text of a token; a part of a character is U+FFFD, and its bytes say which part."""
    return token.piece.decode("utf-8", "replace")


def _finite(logprob: float | None) -> float | None:
    """Return it for JSON; the first token of a prompt has none."""
    return logprob if logprob is None or math.isfinite(logprob) else _LEAST_LOGPROB


def fingerprint(engine: str) -> str:
    """Return a short name of what computes: of one build of llama.cpp on one kind of CPU it is the same."""
    return f"b{hashlib.sha256(engine.encode()).hexdigest()[:12]}"


def usage_of(finished: Finished) -> Json:
    """Return what an answer took, as OpenAI's clients read it, with FlexServe's `timings`."""
    usage, timings = finished.usage, finished.timings
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "timings": {
            "queue_ms": timings.queue,
            "restore_ms": timings.restore,
            "decrypt_ms": timings.decrypt,
            "prefill_ms": timings.prefill,
            "decode_ms": timings.decode,
            "ttft_ms": timings.ttft,
            "restored_bytes": timings.restored_bytes,
            "npu_products": timings.npu_products,
            "guessed": timings.guessed,
            "guessed_right": timings.guessed_right,
        },
    }
