"""A conversation as a state machine: its turns and their versions, its prompt, its replies. No input or output."""
