"""The chat: conversations kept on the server, answered by the same service as every client's."""
