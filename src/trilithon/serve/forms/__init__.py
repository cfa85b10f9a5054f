"""Answers of a form: by a JSON schema, or as a call of a tool."""
