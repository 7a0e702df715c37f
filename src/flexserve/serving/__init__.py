"""Runs the policies: whose turn it is, what stays in memory and what goes."""
