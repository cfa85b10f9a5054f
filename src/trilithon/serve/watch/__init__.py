"""What is told of the server while it works: a line for each request, and figures for Prometheus."""
