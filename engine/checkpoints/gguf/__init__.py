"""GGUF files, as llama.cpp, Ollama and LM Studio use them: one file with metadata, tokenizer and weights."""
