"""The models of this server: the shelf they are served from, and what changes it."""
