"""What a conversation can talk to: a model that this program loads, or one that a server has."""
