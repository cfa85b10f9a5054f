"""The page of the board: the chip at work, its last minutes, and what the doctor finds."""
