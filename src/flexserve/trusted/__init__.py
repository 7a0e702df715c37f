"""The trusted application: it sees plaintext, and takes no decision about whose turn it is."""
