"""The fuzzer: messages, requests and rows at their extremes, judged by bystanders.

Run it with `make fuzz`, or `python -m tests.fuzz --help`.
"""
