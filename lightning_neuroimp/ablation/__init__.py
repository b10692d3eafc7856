"""Remove neurons in ranked and in random orders, and judge from the outcomes whether a ranking holds."""
