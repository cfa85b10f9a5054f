"""The door: who may come in, from where, how often and with how long a body."""
