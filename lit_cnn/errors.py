"""The one exception for a mistake that the user can mend."""


class UsageError(Exception):
    """A mistake of the user: the command ends with exit code 2 and this message as its only line.

    The message names the option, the value given and the way out, for example
    ``--data.batch_size 0: give a whole number of at least 1``.
    """
