"""The UNTRUSTED side: HTTP relay, memory manager, launching the secure world."""
