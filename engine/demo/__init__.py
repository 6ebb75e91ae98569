"""The embedded model: a small Llama, the textbook it is trained on, its questions and its training program.

It knows one little textbook and nothing else. Its purpose is that every program runs at once, without a network: it
demonstrates the engine, not intelligence.
"""
