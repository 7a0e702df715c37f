"""Linux: Flex-Mem from memfd_secret (or plain, labelled), memory pressure from /proc."""
