"""Results: what a measurement has found, as NumPy dataclasses, their files, and the findings drawn from them.

Filled in by `study`, read by `display`, `callbacks` and users; knows neither torch nor a model.
"""
