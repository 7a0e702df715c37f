"""Chat templates that llama-server knows by name, written for the tests that name them."""

from __future__ import annotations

from flexserve.testing.llama_server_tests.models import CHATML

_LLAMA3 = (
    "{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_COMMAND_R = (
    "{% for message in messages %}<|START_OF_TURN_TOKEN|><|"
    "{{ {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'}[message.role] }}_TOKEN|>"
    "{{ message.content | trim }}<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)
NAMED = {"chatml": CHATML, "llama3": _LLAMA3, "command-r": _COMMAND_R}
