"""capture/suffix."""
