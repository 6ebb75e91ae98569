"""What a model remembers between two steps: keys and values, or a recurrent state."""
