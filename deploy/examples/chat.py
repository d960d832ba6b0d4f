#!/usr/bin/env python3
"""A chat with names and history, as a handler of WebSockets: RELAY_WS_HANDLER=/srv/chat.py FOLDER

The relay starts one for each connection. Clients open ws://…/ws/ROOM?name=Anna and send text. The last messages of a room
are kept in FOLDER, which the web server's user must be able to write to.
"""
import fcntl
import hashlib
import json
import os
import sys
import time
import urllib.parse

KEPT = 20
folder = sys.argv[1]
room = name = since = None


def do(action, value):
    print(json.dumps({action: value}), flush=True)


def history(message=None):
    """The last messages of the room; with one more, if there is one. The lock keeps the other connections' handlers out."""
    path = os.path.join(folder, hashlib.sha256(room.encode()).hexdigest())
    with open(path, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        messages = [json.loads(line) for line in file]
        if message is not None:
            messages = messages[1 - KEPT:] + [(time.time() * 1000, message)]
            file.truncate(0)
            file.writelines(json.dumps(message) + "\n" for message in messages)
    return messages


for line in sys.stdin:
    event = json.loads(line)
    kind = event["event"]
    if kind == "started":
        room, since = event["channel"], event["time"]
    elif kind == "authenticate":
        name = urllib.parse.parse_qs(event["query"]).get("name", [""])[0].strip()[:30]
        do("accept", name != "")
    elif kind == "open":
        for said, message in history():
            if said < since:  # the others come by themselves
                do("send", message)
        do("broadcast", f"* {name} has come")
    elif kind == "text":
        message = f"{name}: {event['text']}"
        history(message)
        do("broadcast", message)
        do("send", message)
    elif kind == "fifo":  # from the application: uhst-relay notify ROOM
        do("send", event["data"] if isinstance(event["data"], str) else json.dumps(event["data"]))
    elif kind == "before_close" and name:
        do("broadcast", f"* {name} has left")
