"""Hold what was found as NumPy records, write and read it as files, and find reasons why scores are weak.

Filled in by `study`, read by `display`, `callbacks` and users; knows neither torch nor a model.
"""
