"""Vision-language models: the tower, the connector, and how pictures become tiles and tokens."""
