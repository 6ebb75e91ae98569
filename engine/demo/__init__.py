"""The embedded model: a small Llama of our own, its textbook, its questions and its trainer.

It knows one little textbook and nothing else. It is here so that every program works at once, without a network:
it demonstrates the machine, not intelligence.
"""
