"""Long-term memory: pieces of text in one SQLite file, found by their words and by their meaning. Loads without torch.

`store`: the file and its search. `documents`: files as pieces. `embedder`: vectors of texts from a model of the engine.
`python -m chat.memory` adds, lists, searches and forgets.
"""
