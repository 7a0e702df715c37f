"""The platform contract kit, fakes and stateful machines, shipped for third parties' adapters.

Trusted with: nothing: the product does not import it.
Sees: test data.
"""
