"""The type checker under pytest: an int is a float, as type checkers have it (PEP 484)."""

import random

# it looks at random items of lists; from a generator of its own, as models that draw from Python's are noticed
shared, random.getrandbits = random.getrandbits, random.Random(0).getrandbits
from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
random.getrandbits = shared
