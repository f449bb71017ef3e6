"""The sandbox processor: a process of its own that behaves as payment processors do, over real HTTP.

docs/reference/sandbox.md describes its API, its test tokens and what it can be told to do wrong.
"""
