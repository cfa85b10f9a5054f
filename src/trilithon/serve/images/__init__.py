"""Pictures in requests: read where that is safe, known by their first bytes."""
