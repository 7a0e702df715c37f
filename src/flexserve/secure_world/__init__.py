"""The secure world's process: wires the trusted application, the policies and the platform.

Trusted with: that the sandbox is closed before anybody is served.
Sees: prompts and answers, as they come and go.
"""
