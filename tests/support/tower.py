"""The type checker under pytest: an int is a float, as type checkers have it (PEP 484)."""

import dataclasses
import functools
import inspect
import random
from types import FunctionType

import jaxtyping

# it looks at random items of lists; from a generator of its own, as models that draw from Python's are noticed
shared, random.getrandbits = random.getrandbits, random.Random(0).getrandbits
from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
random.getrandbits = shared

_slow = jaxtyping.jaxtyped
_names = _slow("context")  # a fresh memory of what the names of axes stand for
_compiled = {}


def jaxtyped(fn=None, *, typechecker=None):
    """Check what jaxtyping's decorator checks, in a third of its time.

    That one binds all arguments by hand, checks them once before the call and once more after it, and compiles both
    checks where a function is defined: those inside of other functions each time. This one compiles one check, when a
    function is first called, and gives names of axes their meaning for arguments and result of one call, as it does.
    """
    if isinstance(fn, str):  # "context", which results/decoding.py asks for
        return _slow(fn)
    if fn is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if inspect.isclass(fn):
        if dataclasses.is_dataclass(fn) and not hasattr(fn.__init__, "__wrapped__"):
            fn.__init__ = jaxtyped(fn.__init__, typechecker=typechecker)
        return fn
    hints = getattr(fn, "__annotations__", {}).values()
    # what is yielded later has no call to belong to, and text or {values of arguments} need jaxtyping's own reading
    special = inspect.isgeneratorfunction(fn) or any(isinstance(hint, str) or "{" in str(hint) for hint in hints)
    if not isinstance(fn, FunctionType) or special:
        return _slow(fn, typechecker=typechecker)
    check = None

    @functools.wraps(fn)
    def wrapped(*args, **kwargs):
        nonlocal check
        if jaxtyping.config.jaxtyping_disable:
            return fn(*args, **kwargs)
        if check is None:
            check = _check_of(fn, typechecker)
        with _names:
            return check(*args, **kwargs)

    return wrapped


def _check_of(fn, typechecker):
    """Compile the check of a function; one that is defined again and again inside of another is compiled once."""
    hints, check = _compiled.get(fn.__code__, (None, None))
    if hints != fn.__annotations__:
        check = typechecker(fn)
        _compiled[fn.__code__] = dict(fn.__annotations__), check
        return check
    if "__beartype_func" not in (check.__kwdefaults__ or {}):
        return fn  # there is nothing to check in it
    again = FunctionType(check.__code__, check.__globals__, check.__name__, check.__defaults__, check.__closure__)
    again.__kwdefaults__ = check.__kwdefaults__ | {"__beartype_func": fn}
    return again
