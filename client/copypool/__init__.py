"""Copypool: a distributed file store with primary and copy storage pools."""
