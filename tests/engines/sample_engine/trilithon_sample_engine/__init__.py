"""A package that adds an engine to Trilithon."""
