"""The models of this machine: what is here, what is being fetched, and what is loaded."""
