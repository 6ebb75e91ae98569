"""The page: python -m chat --web serves the conversations of the terminal to a browser on this machine."""
