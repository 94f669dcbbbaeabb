"""A quick check for a network connection, where libraries would hang or retry for minutes."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from vitsee.errors import UserError


def require(url: str, what: str, remedy: str, seconds: float = 8) -> None:
    """Raise UserError (what, why, remedy) unless the host of `url` answers within the time limit.

    Looking up a host's name can hang for longer than any socket timeout, hence the thread. The environment's
    proxies are used, as for the downloads themselves.
    """
    answer: list[str] = []
    asking = threading.Thread(target=lambda: answer.append(_ask(url, seconds)), daemon=True)
    asking.start()
    asking.join(seconds)
    reason = answer[0] if answer else f"no answer within {seconds:g} s"
    if reason:
        host = urlsplit(url).hostname
        raise UserError(
            f"{what} must be downloaded, but {host} cannot be reached ({reason}); {remedy}"
        )


def _ask(url: str, seconds: float) -> str:
    """Return why the host does not answer, or an empty string if it does. An HTTP error is an answer too."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):
            return ""
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
