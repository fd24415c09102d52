import base64
import hashlib
import hmac
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request


def mint(secret, user, ttl=3600):
    """Username and password that the relay accepts for ttl seconds."""
    username = f"{int(time.time()) + ttl}:{user}"
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return username, base64.b64encode(digest).decode()


def ask(relay, key, user):
    """The iceServers that the relay's endpoint gives for this user."""
    query = urllib.parse.urlencode({"username": user})
    request = urllib.request.Request(f"{relay}/v1/credentials?{query}")
    request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)["iceServers"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"the relay answers {error.code}: {error.read().decode()}") from error


def main(command, user):
    if command == "mint":
        print(*mint(os.environ["TURN_SECRET"], user), sep="\n")
    else:
        print(json.dumps(ask(os.environ["RELAY"], os.environ["RELAY_KEY"], user)))


if __name__ == "__main__":
    main(*sys.argv[1:])
