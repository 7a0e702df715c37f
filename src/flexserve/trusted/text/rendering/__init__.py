"""The helper that runs strangers' code: chat templates and grammars.

Trusted with: nothing: it sees a conversation, and is kept from keeping it.
Sees: the prompt that it renders.
"""
