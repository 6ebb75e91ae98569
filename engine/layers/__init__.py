"""The building blocks of a forward pass: attention, rotary embedding, norms, MLPs, Linear and Embedding."""
