"""The page of what was measured: listed, filtered, compared, downloaded, and measured anew."""
