"""The page of published measurements, and of estimates from them."""
