"""Sampling by a real server: a prompt's probabilities, grammars, seeds, and answers beside each other."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from typing import Any

import httpx
import openai
import pytest
from real_server import KEY, Server, skip_if_refused_inside

pytestmark = pytest.mark.engine

TEXT = "FlexServe serves language models from memory that the operating system"
SAMPLED = {"temperature": 1.5, "top_k": 0, "min_p": 0, "seed": 42, "max_tokens": 24}


def complete(server: Server, prompt: Any, **more: Any) -> Any:
    response = httpx.post(
        f"{server.url}/v1/completions",
        json={"model": "tiny", "prompt": prompt} | more,
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=120,
    )
    skip_if_refused_inside(response)
    assert response.status_code == 200, response.text
    return response.json()


def recall(server: Server) -> None:
    httpx.post(f"{server.url}/recall", json={}, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)


def tokens_of(server: Server, text: str) -> list[int]:
    response = httpx.post(
        f"{server.url}/tokenize",
        json={"model": "tiny", "content": text},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=60,
    )
    return list(response.json()["tokens"])


def test_the_probabilities_of_a_prompt_are_those_that_its_tokens_had_as_an_answer(server: Server) -> None:
    said = complete(server, TEXT, temperature=0, max_tokens=30, logprobs=2)["choices"][0]
    whole = complete(server, TEXT + said["text"], max_tokens=0, echo=True, logprobs=2)["choices"][0]
    assert (whole["text"], whole["finish_reason"]) == (TEXT + said["text"], "length")
    scores = whole["logprobs"]
    assert scores["token_logprobs"][0] is scores["top_logprobs"][0] is None
    assert len(scores["tokens"]) == len(scores["token_logprobs"]) == len(scores["top_logprobs"])
    count = len(said["logprobs"]["tokens"])
    assert scores["tokens"][-count:] == said["logprobs"]["tokens"]
    assert scores["token_logprobs"][-count:] == pytest.approx(said["logprobs"]["token_logprobs"], abs=0.05)


def test_lm_evals_loglikelihood_finds_what_it_reads(server: Server) -> None:
    """lm-eval sends tokens, has them echoed with a token more, and reads the scores behind the context."""
    contexts = [tokens_of(server, TEXT), tokens_of(server, "The secure world")]
    wholes = [
        context + tokens_of(server, text) for context, text in zip(contexts, [" can", " is a"], strict=True)
    ]
    body = complete(server, wholes, max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1234)
    for choice, context, whole in zip(
        sorted(body["choices"], key=itemgetter("index")), contexts, wholes, strict=True
    ):
        scores = choice["logprobs"]["token_logprobs"][len(context) : -1]
        tops = choice["logprobs"]["top_logprobs"][len(context) : -1]
        assert len(scores) == len(tops) == len(whole) - len(context)
        assert all(score <= max(top.values()) <= 0 for score, top in zip(scores, tops, strict=True))
    assert body["usage"]["completion_tokens"] == 2


def test_probabilities_after_the_samplers_are_of_the_tokens_that_they_left(server: Server) -> None:
    body = {"model": "tiny", "prompt": TEXT, "n_probs": 10, "post_sampling_probs": True, "n_predict": 6}
    answer = httpx.post(
        f"{server.url}/completion",
        json=body | {"top_k": 3, "temperature": 1, "seed": 7},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    for token in answer.json()["completion_probabilities"]:
        left = [other["prob"] for other in token["top_probs"]]
        assert 0 < len(left) <= 3
        assert sum(left) == pytest.approx(1)


def test_an_answer_follows_its_grammar(server: Server, client: openai.OpenAI) -> None:
    grammar = 'root ::= "I say: " word (" and " word){2}\nword ::= "yes" | "no" | [a-z]{3}'
    text = complete(server, TEXT, grammar=grammar, max_tokens=60, temperature=1)["choices"][0]["text"]
    assert re.fullmatch("I say: [a-z]{2,3} and [a-z]{2,3} and [a-z]{2,3}", text)
    nested = 'root ::= "(" root ")" | "x"'
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Nest."}],
        max_tokens=40,
        extra_body={"grammar": nested},
    )
    assert re.fullmatch(r"\(*x?\)*", answer.choices[0].message.content or "")


def test_equal_seeds_give_equal_answers_alone_together_and_after_recalls(server: Server) -> None:
    alone = complete(server, TEXT, **SAMPLED, cache_prompt=False)["choices"][0]["text"]
    recall(server)
    assert complete(server, TEXT, **SAMPLED, cache_prompt=False)["choices"][0]["text"] == alone
    assert complete(server, TEXT, **(SAMPLED | {"seed": 43}))["choices"][0]["text"] != alone
    with ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(complete, server, TEXT, **SAMPLED, cache_prompt=False) for _ in range(3)]
        for _ in range(4):
            recall(server)
    assert {one.result()["choices"][0]["text"] for one in asked} == {alone}


def test_several_answers_have_seeds_of_their_own(server: Server) -> None:
    choices = complete(server, TEXT, **SAMPLED, n=3)["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert len({choice["text"] for choice in choices}) == 3


def test_an_answer_is_as_long_as_it_has_to_be(server: Server) -> None:
    question = "<|user|>\nWhat is FlexServe?<|end|>\n<|assistant|>\n"
    body = complete(server, question, ignore_eos=True, max_tokens=200, temperature=0)
    assert (body["usage"]["completion_tokens"], body["choices"][0]["finish_reason"]) == (200, "length")
    none = complete(server, TEXT, max_tokens=0)
    assert (none["choices"][0]["text"], none["usage"]["completion_tokens"]) == ("", 0)


def test_a_penalty_keeps_an_answer_from_repeating_itself(server: Server) -> None:
    usual = complete(server, "a a a a a a a a", max_tokens=16, temperature=0, logit_bias={" a": 100})
    assert "a a a a" in usual["choices"][0]["text"]
    never = complete(
        server, "a a a a a a a a", max_tokens=16, temperature=0, logit_bias=[[" a", False], ["a", False]]
    )
    assert " a " not in never["choices"][0]["text"]
