"""Public architectures with small random weights, and a slow twin of what the package says about them."""

from .entry import Entry


def all_entries() -> list[Entry]:
    """Return all architectures; no package of theirs is imported yet."""
    from . import coincidences, films, graphs, images, patches, pictures, sequences, sounds, text, volumes

    rooms = (text, pictures, images, patches, films, sounds, volumes, sequences, graphs, coincidences)
    return [entry for room in rooms for entry in room.ENTRIES]
