"""Passwords stay in the process that was given them: what is written or shown leaves them out."""

import re
from typing import Any

# Up to the last @ before the path: a password may hold one.
_USER_IN_ADDRESS = re.compile(r"(?<![\w+.-])([A-Za-z][\w+.-]*://)[^\s/]*@")
_SECRET = re.compile(r"password|passwd|secret|token|api_?key|access_?key|credential", re.IGNORECASE)


def without_credentials(text: str) -> str:
    """Returns a text with user and password taken out of the addresses in it: `http://host:5000`."""
    return _USER_IN_ADDRESS.sub(r"\1", text) if "@" in text else text


def recordable(values: Any, by_name: bool) -> Any:
    """Returns nested plain values without credentials.

    Args:
        values: Dictionaries, lists and plain values.
        by_name: Whether to hide texts under a name such as `api_key` too, and not in addresses alone.
    """
    if isinstance(values, dict):
        return {
            name: "***"
            if by_name and isinstance(value, str) and _SECRET.search(str(name))
            else recordable(value, by_name)
            for name, value in values.items()
        }
    if isinstance(values, list | tuple):
        return [recordable(value, by_name) for value in values]
    return without_credentials(values) if isinstance(values, str) else values
