"""Messages, tools and replies of a chat, without a server or a model."""
