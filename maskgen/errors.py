"""The base of every error that is the user's to mend: shown as one or two lines, never as a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Something given from outside is wrong; the message names the value, the choices and the way out."""
