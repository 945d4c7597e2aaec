"""Addresses such as `s3://bucket/folder`, told from paths by their look alone."""

import re

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_address(place: object) -> bool:
    """Whether a text is the address of a place elsewhere, and no path: it begins as `s3://` does.

    A path is none, though one may be called so: a folder `s3:` would have to be written `./s3://…`.
    """
    return isinstance(place, str) and _ADDRESS.match(place) is not None


def last_name(address: str) -> str:
    """Returns what an address ends in: `photos` of `s3://bucket/photos/`, the bucket or host of an address without."""
    return address.rstrip("/").rpartition("/")[2]
