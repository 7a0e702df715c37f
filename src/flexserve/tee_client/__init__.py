"""The normal world's side of the trusted application of S-EL0: it drives that by messages.

The application (trusted-app/) sees plaintext and decides nothing. What runs the policies over the port is
here.

Trusted with: unsealed requests, whose templates it renders. No key, no weights.
Sees: prompts and answers of unsealed requests; of all else names, sizes, counts, times and ciphertext.
"""
