"""The bench: a real cluster of this machine and, beside it, what a user would pick instead. `make bench` runs it.

What is measured: operations per second, and the CPU time of every process of the side under test per operation
(`processes`). On a machine that does other things as well only the second is a figure to compare between runs, and even
that grows with what neighbours do to caches and cores: each round says what a fixed piece of work cost beside it
(`yardstick`). Rates are compared within one run alone, rounds of both sides taking turns. Load generators are not
counted, but for the SDK's cases, where the SDK is part of what is measured and has a line of its own.
"""
