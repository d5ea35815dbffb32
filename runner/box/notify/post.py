"""One POST, in a process of its own: it may hang in a name that is not found, and is then killed. Standard library
only. Standard input: JSON {url, headers, body, seconds}. Standard output: JSON {status} or {error}."""

import json
import ssl
import sys
import urllib.error
import urllib.request


class _Stays(urllib.request.HTTPRedirectHandler):
    """Nothing is followed: what the request carries is for that one address."""

    def redirect_request(self, *asked):  # type: ignore[no-untyped-def]
        return None


def main() -> None:
    asked = json.load(sys.stdin)
    request = urllib.request.Request(asked["url"], asked["body"].encode(), asked["headers"], method="POST")
    try:
        with urllib.request.build_opener(_Stays).open(request, timeout=asked["seconds"]) as answer:
            said = {"status": answer.status}
    except urllib.error.HTTPError as error:
        said = {"status": error.code}
    except Exception as error:
        said = {"error": _plain(error)}
    json.dump(said, sys.stdout)


def _plain(error: Exception) -> str:
    """Without the address, which may be as good as a password."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({reason.verify_message})"
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return type(reason).__name__


if __name__ == "__main__":
    main()
