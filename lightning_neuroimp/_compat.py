"""Private parts of other packages that are read here: nowhere else, and each with a test that it exists."""
