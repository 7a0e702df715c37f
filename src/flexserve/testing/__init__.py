"""The platform contract kit and stateful machines, shipped for third parties' adapters."""
