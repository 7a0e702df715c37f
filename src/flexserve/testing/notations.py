"""Notations in which models of many families write thoughts and calls, and answers in them."""

from __future__ import annotations

from typing import Any

from flexserve.protocol.notation import ANY, CallNotation, Notation, Style

TOOLS: dict[str, dict[str, Any]] = {
    "f": {"x": {"type": "integer"}, "s": {"type": "string"}, "o": {"type": "object"}},
    "g.h-1": {},
}
PLAIN = Notation()
HARMONY = Notation("", "", harmony=True)
NAMED = Notation(calls=CallNotation(Style.NAMED, open="<function=", middle=">", close="</function>"))
MISTRAL = Notation(
    "[THINK]",
    "[/THINK]",
    CallNotation(Style.NAMED, open="[TOOL_CALLS]", middle=f"[CALL_ID]{ANY}[ARGS]"),
)
LISTED = Notation(calls=CallNotation(Style.JSON, begin="[TOOL_CALLS]", listed=True))
KEYED = Notation(
    calls=CallNotation(Style.JSON, begin="<|t|>", end="<|/t|>", name_key="", arguments_key="", listed=True)
)
COHERE = Notation(
    "<|START_THINKING|>",
    "<|END_THINKING|>",
    CallNotation(
        Style.JSON,
        begin="<|START_ACTION|>",
        end="<|END_ACTION|>",
        name_key="tool_name",
        arguments_key="parameters",
        listed=True,
    ),
    dropped=["<|START_RESPONSE|>", "<|END_RESPONSE|>"],
)
KIMI = Notation(
    calls=CallNotation(
        Style.NAMED,
        begin="<|section|>",
        open="<|call|>",
        middle="<|argument|>",
        close="<|end_call|>",
        end="<|end_section|>",
        numbered=True,
    )
)
CODER = Notation(
    calls=CallNotation(
        Style.TAGGED,
        open="<tool_call>\n<function=",
        middle=">",
        close="\n</function>\n</tool_call>",
        between="\n",
        key_open="\n<parameter=",
        key_close=">\n",
        value_close="\n</parameter>",
    )
)
GLM = Notation(
    calls=CallNotation(
        Style.TAGGED,
        open="\n<tool_call>",
        close="\n</tool_call>",
        key_open="\n<arg_key>",
        key_close="</arg_key>\n<arg_value>",
        value_close="</arg_value>",
    )
)
DSML = Notation(
    calls=CallNotation(
        Style.TAGGED,
        begin="<|calls>\n",
        open='<|invoke name="',
        middle='">\n',
        close="\n</|invoke>",
        between="\n",
        end="\n</|calls>",
        key_open='<|parameter name="',
        key_close=f'" string="{ANY}">',
        value_close="</|parameter>\n",
    )
)
NAMED_TAGS = Notation(
    calls=CallNotation(
        Style.TAGGED,
        begin="<calls>",
        open='\n<invoke name="',
        middle='">',
        close="</invoke>",
        end="\n</calls>",
        key_open="<",
        key_close=">",
        value_close=f"</{ANY}>",
    )
)
NESTED_TAGS = Notation(
    "<think>",
    "</think>",
    CallNotation(
        Style.TAGGED,
        begin="@<calls>",
        open='\n@<invoke name="',
        middle='">',
        close="@</invoke>",
        end="\n@</calls>",
        key_open="@<",
        key_close=">",
        value_close=f"@</{ANY}>",
    ),
)
PYTHON = Notation(calls=CallNotation(Style.PYTHON, open="<|call_start|>", close="<|call_end|>"))
BARE_PYTHON = Notation(calls=CallNotation(Style.PYTHON))
GEMMA = Notation(
    "<|channel>thought",
    "<channel|>",
    CallNotation(Style.BRACED, open="<|tool_call>call:", close="<tool_call|>", quote='<|"|>'),
)
FUNCTIONARY = Notation(calls=CallNotation(Style.NAMED, open=">>>", middle="\n"), dropped=[">>>all\n"])
NOTATIONS = [
    *(PLAIN, HARMONY, NAMED, MISTRAL, LISTED, KEYED, COHERE, KIMI, CODER, GLM, DSML, PYTHON, BARE_PYTHON),
    *(GEMMA, FUNCTIONARY, NAMED_TAGS, NESTED_TAGS),
]

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
# A notation; an answer in it; what that says, what it thinks, and its calls.
WHOLE: list[tuple[Notation, str, str, str, list[tuple[str, dict[str, Any]]]]] = [
    (
        PLAIN,
        f"I look.\n{CALL}\n{CALL}",
        "I look.",
        "",
        [("f", {"x": 1})] * 2,
    ),
    (
        PLAIN,
        f"<think>\nhm {CALL}\n</think>\n\n{CALL}",
        "",
        f"hm {CALL}",
        [("f", {"x": 1})],
    ),
    (
        PLAIN,
        "<think>hm</think>\n\nyes <think> no",
        "yes <think> no",
        "hm",
        [],
    ),
    (
        PLAIN,
        "<think>a</think><think>b</think>c",
        "c",
        "ab",
        [],
    ),
    (
        PLAIN,
        "<think><think>a</think>c",
        "c",
        "a",
        [],
    ),
    (
        PLAIN,
        "</think>\n\nyes </think> no",
        "yes </think> no",
        "",
        [],
    ),
    (
        PLAIN,
        "<think> never ended",
        "",
        "never ended",
        [],
    ),
    (
        PLAIN,
        '{"name": "f", "parameters": {"x": 1}}; {"name": "f", "arguments": {}}',
        "",
        "",
        [("f", {"x": 1}), ("f", {})],
    ),
    (
        PLAIN,
        '<tool_call>[{"name": "f", "arguments": {}}]</tool_call>',
        "",
        "",
        [("f", {})],
    ),
    (
        NAMED,
        'so <function=f>{"x": {"y": "</function>"}}</function>',
        "so",
        "",
        [("f", {"x": {"y": "</function>"}})],
    ),
    (
        MISTRAL,
        (
            '[THINK]hm[/THINK]ok[TOOL_CALLS]f[CALL_ID]abc123XYZ[ARGS]{"x": 1}[TOOL_'
            "CALLS]g.h-1[CALL_ID]b[ARGS]{}"
        ),
        "ok",
        "hm",
        [("f", {"x": 1}), ("g.h-1", {})],
    ),
    (
        LISTED,
        (
            '[TOOL_CALLS][{"name": "f", "arguments": {"x": 1}, "id": "abc123XYZ"}, '
            '{"name": "f", "arguments": {}}]'
        ),
        "",
        "",
        [("f", {"x": 1}), ("f", {})],
    ),
    (
        KEYED,
        '<|t|>[{"f": {"x": 1}}, {"f": {"s": "}"}}]<|/t|>done',
        "done",
        "",
        [("f", {"x": 1}), ("f", {"s": "}"})],
    ),
    (
        COHERE,
        (
            "<|START_THINKING|>hm<|END_THINKING|><|START_ACTION|>[\n"
            '{"tool_call_id": "0", "tool_name": "f", "parameters": {"x": 1}}\n]'
            "<|END_ACTION|>"
        ),
        "",
        "hm",
        [("f", {"x": 1})],
    ),
    (
        COHERE,
        "<|START_RESPONSE|>yes<|END_RESPONSE|>",
        "yes",
        "",
        [],
    ),
    (
        KIMI,
        (
            '<|section|><|call|>functions.f:0<|argument|>{"x": 1}<|end_call|>'
            "<|call|>functions.f:1<|argument|>{}<|end_call|><|end_section|>"
        ),
        "",
        "",
        [("f", {"x": 1}), ("f", {})],
    ),
    (
        CODER,
        (
            "<tool_call>\n<function=f>\n<parameter=x>\n5\n</parameter>\n<parameter=s>\n5\n"
            "</parameter>\n</function>\n</tool_call>"
        ),
        "",
        "",
        [("f", {"x": 5, "s": "5"})],
    ),
    (
        CODER,
        f"<tool_call>\n<function=f>\n</function>\n</tool_call>\n{CALL}",
        "",
        "",
        [("f", {}), ("f", {"x": 1})],
    ),
    (
        CODER,
        (
            "<tool_call><function=f><parameter=s>\n a\n\n</parameter>"
            '<parameter=o>{"k": [1]}</parameter></function></tool_call>'
        ),
        "",
        "",
        [("f", {"s": " a\n", "o": {"k": [1]}})],
    ),
    (
        CODER,
        (
            "<tool_call>\n<function=f>\n<parameter=o>\n{'k': [True, None, \"it's\"]}\n</parameter>\n"
            "<parameter=s>\n{'k': 1}\n</parameter>\n</function>\n</tool_call>"
        ),
        "",
        "",
        [("f", {"o": {"k": [True, None, "it's"]}, "s": "{'k': 1}"})],
    ),
    (
        GLM,
        (
            "hm<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>a <b> c</arg_value>\n"
            "</tool_call>\n<tool_call>g.h-1</tool_call>"
        ),
        "hm",
        "",
        [("f", {"s": "a <b> c"}), ("g.h-1", {})],
    ),
    (
        DSML,
        (
            '<|calls>\n<|invoke name="f">\n<|parameter name="s" string="true">1'
            '</|parameter>\n<|parameter name="n" string="false">1</|parameter>\n'
            "</|invoke>\n</|calls>"
        ),
        "",
        "",
        [("f", {"s": "1", "n": 1})],
    ),
    (
        NAMED_TAGS,
        '<calls>\n<invoke name="f"><s>a</x></s><x>1</x></invoke>\n</calls>',
        "",
        "",
        [("f", {"s": "a</x>", "x": 1})],
    ),
    (
        NESTED_TAGS,
        '@<calls>\n@<invoke name="f">@<o>@<o>@<k>1@</k>@</o>'
        "@<l>@<item>a@</item>@<item>@<n>2@</n>@</item>@</l>@</o>"
        "@<s>@<b>@</s>@</invoke>\n@</calls>",
        "",
        "",
        [("f", {"o": {"o": {"k": 1}, "l": ["a", {"n": 2}]}, "s": "@<b>"})],
    ),
    (
        PYTHON,
        '<|call_start|>[f(x=1, s="a", o={"k": true, "n": null}), g.h()]<|call_end|>ok',
        "ok",
        "",
        [("f", {"x": 1, "s": "a", "o": {"k": True, "n": None}}), ("g.h", {})],
    ),
    (
        BARE_PYTHON,
        '[f(x=-1, s="]")]',
        "",
        "",
        [("f", {"x": -1, "s": "]"})],
    ),
    (
        GEMMA,
        (
            '<|channel>thought\nhm<channel|><|tool_call>call:f{x:1,s:<|"|>a, {b}'
            '<|"|>,o:{k:[true,null]}}<tool_call|>'
        ),
        "",
        "hm",
        [("f", {"x": 1, "s": "a, {b}", "o": {"k": [True, None]}})],
    ),
    (
        FUNCTIONARY,
        '>>>all\nI look.\n>>>f\n{"x": 1}>>>f\n{}',
        "I look.",
        "",
        [("f", {"x": 1}), ("f", {})],
    ),
    (
        HARMONY,
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>"
            'commentary to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>'
        ),
        "",
        "hm",
        [("f", {"x": 1})],
    ),
    (
        HARMONY,
        '<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"x": 1}',
        "",
        "",
        [("f", {"x": 1})],
    ),
    (
        HARMONY,
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>"
            "final<|message|>yes\n no<|return|>"
        ),
        "yes\n no",
        "hm",
        [],
    ),
    (
        HARMONY,
        "plain <| text",
        "plain <| text",
        "",
        [],
    ),
]
