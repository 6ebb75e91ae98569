"""OpenAI's API as data: requests, replies and errors, without a server or a model."""
