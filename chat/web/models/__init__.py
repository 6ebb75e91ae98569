"""The models that a page offers: those that this program loads, or those of a server; and that of a conversation."""
