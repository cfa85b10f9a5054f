"""OpenAI's API: chat, completions, embeddings and Responses."""
