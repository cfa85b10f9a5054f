"""The pages: chat, the board, the models and the results in a browser, over the same service as every API."""
