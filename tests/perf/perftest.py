#!/usr/bin/env python3
"""Measures UHST relays: ping, register, roundtrip and throughput.

    echo '[{"urls": ["http://localhost:8080"], "prefix": "local"}]' > local_relay.json
    python3 perftest.py --relays local_relay.json

Needs nothing but Python 3.7. An https relay with a certificate of its own is trusted when SSL_CERT_FILE names it.
Exit code 0 when all went well, 1 when a relay made a mistake or lost something, 2 when the call itself is wrong.
"""

import argparse
import collections
import http.client
import json
import math
import sys
import threading
import time
import urllib.parse

TESTS = {
    # name: (what it does, how many of it)
    "ping": ("ask for a pong, one after another", 100),
    "register": ("register a host, one after another", 50),
    "roundtrip": ("a client sends to a host, which replies, one after another", 50),
    "throughput": ("clients send to one host, all at once", 400),
}
PATIENCE = 10  # seconds without an answer or an event that is due
TOO_MANY = 5   # errors that end a test: more would only repeat themselves


class Mistake(Exception):
    """The relay did something else than the protocol says."""


class Gone(Mistake):
    """Something did not come, and it makes no sense to go on."""


class Line:
    """A connection for requests, kept alive as far as the server lets it."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Mistake("not an http or https URL: %s" % url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self.connection = kind(parts.hostname, parts.port, timeout=PATIENCE)
        self.path = parts.path or "/"
        self.used = False

    def post(self, query, body=b""):
        """The JSON of the answer, which must be 200."""
        headers = {"Content-Type": "application/json"}
        while True:
            try:
                self.connection.request("POST", "%s?%s" % (self.path, query), body, headers)
                answer = self.connection.getresponse()
                text = answer.read()
                break
            except (ConnectionError, http.client.BadStatusLine):
                # A server may close an idle connection at any time, also just now (RFC 9112, 9.5).
                self.connection.close()
                if not self.used:
                    raise
                self.used = False
        self.used = True
        if answer.status != 200:
            words = " ".join(text.decode("utf-8", "replace").split())
            raise Mistake("answered %d: %s" % (answer.status, words[:120]))
        return text

    def close(self):
        self.connection.close()


class Stream(threading.Thread):
    """Listens, and hands each message to `receive(data, time it was read)` in a thread of its own."""

    def __init__(self, url, token, receive):
        super().__init__(daemon=True)
        line = Line(url)
        connection = line.connection
        connection.request("GET", "%s?token=%s" % (line.path, token), headers={"Accept": "text/event-stream"})
        self.socket = connection.sock
        self.answer = connection.getresponse()
        self.socket.settimeout(3 * PATIENCE)  # several keep-alives
        self.receive = receive
        self.error = None
        self.closing = False
        self.last_id = None
        kind = self.answer.getheader("Content-Type", "")
        if self.answer.status != 200 or not kind.startswith("text/event-stream"):
            raise Mistake("a stream answered %d %s" % (self.answer.status, kind))
        self.start()

    def run(self):
        try:
            self.listen()
            if not self.closing:
                self.error = "a stream ended by itself"
        except Exception as error:  # whatever it is, the test has to know
            if not self.closing:
                self.error = "a stream broke: %s" % sentence(error)

    def listen(self):
        name, data, number = None, [], None
        while True:
            line = self.answer.readline()
            read = time.perf_counter()
            if not line:
                return
            field, _, value = line.decode("utf-8").rstrip("\r\n").partition(":")
            value = value[1:] if value.startswith(" ") else value
            if field == "data":
                data.append(value)
            elif field == "event":
                name = value
            elif field == "id":
                number = int(value)
            elif not field and not value and data:
                self.check(number)
                if name is None:
                    self.receive(json.loads("\n".join(data)), read)
                name, data, number = None, [], None

    def check(self, number):
        """Event ids, where there are any, grow."""
        if number is not None:
            if self.last_id is not None and number <= self.last_id:
                raise Mistake("event id %d after %d" % (number, self.last_id))
            self.last_id = number

    def close(self):
        self.closing = True
        try:
            self.socket.shutdown(2)
        except OSError:
            pass
        self.join(PATIENCE)
        self.answer.close()


class Account:
    """Who sent what, and what has arrived: lost, twice, and out of order."""

    def __init__(self):
        self.begun = {}
        self.highest = {}
        self.times = []
        self.arrived = set()
        self.twice = 0
        self.disorder = 0
        self.first = self.last = None
        self.change = threading.Condition()

    def message(self, sender, number, size):
        """The body of a message of `size` bytes, or as few as it takes; its time begins now."""
        bare = json.dumps({"from": sender, "n": number, "pad": ""})
        body = json.dumps({"from": sender, "n": number, "pad": "x" * (size - len(bare))}).encode()
        with self.change:
            now = self.begun[sender, number] = time.perf_counter()
            self.first = self.first or now
        return body

    def arrive(self, data, read):
        message = data["body"]["from"], data["body"]["n"]
        with self.change:
            if message not in self.begun:
                raise Mistake("a message that nobody sent: %s" % json.dumps(data)[:200])
            if message in self.arrived:
                self.twice += 1
                return
            self.arrived.add(message)
            self.times.append(read - self.begun[message])
            self.last = read
            if message[1] < self.highest.get(message[0], -1):
                self.disorder += 1
            self.highest[message[0]] = max(message[1], self.highest.get(message[0], -1))
            self.change.notify_all()

    def wait(self, done, streams):
        """Waits until `done()`; False when nothing has arrived for too long, or a stream has ended."""
        with self.change:
            while not done():
                before = len(self.arrived)
                until = time.perf_counter() + PATIENCE
                while len(self.arrived) == before and not done():
                    if time.perf_counter() > until or any(stream.error for stream in streams):
                        return False
                    self.change.wait(0.2)
        return True

    def lost(self):
        return len(self.begun) - len(self.arrived)


def percentile(times, percent):
    """By nearest rank, in milliseconds."""
    if not times:
        return None
    return round(sorted(times)[math.ceil(len(times) * percent / 100) - 1] * 1000, 3)


class Figures:
    """What one test found."""

    def __init__(self):
        self.times = []
        self.seconds = 0
        self.errors = []
        self.account = None

    def rate(self):
        return round(len(self.times) / self.seconds, 1) if self.times and self.seconds else None

    def good(self):
        account = self.account
        return not self.errors and not (account and (account.lost() or account.twice or account.disorder))

    def as_json(self):
        account = self.account
        report = {
            "ok": self.good(),
            "count": len(self.times),
            "seconds": round(self.seconds, 3),
            "rate": self.rate(),
            "p50_ms": percentile(self.times, 50),
            "p95_ms": percentile(self.times, 95),
            "p99_ms": percentile(self.times, 99),
            "errors": self.errors,
        }
        if account:
            report.update(lost=account.lost(), twice=account.twice, out_of_order=account.disorder)
        return report


FAILURES = (Mistake, OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError)


def sentence(error):
    """What went wrong. The last four are what becomes of an answer that is not the JSON it should be."""
    text = str(error) or type(error).__name__
    return text if isinstance(error, FAILURES[:3]) else "%s: %s" % (type(error).__name__, text)


class Run:
    """The four tests against one URL."""

    def __init__(self, url, options, progress):
        self.url = url
        self.options = options
        self.progress = progress
        self.opened = []

    def test(self, name):
        figures = Figures()
        try:
            getattr(self, name)(figures, self.options.count or TESTS[name][1])
        except FAILURES as error:
            figures.errors.append(sentence(error))
        if figures.account:
            figures.times = figures.account.times
        figures.errors.extend(one.error for one in self.opened if isinstance(one, Stream) and one.error)
        for one in self.opened:
            one.close()
        return figures

    def line(self):
        self.opened.append(Line(self.url))
        return self.opened[-1]

    def stream(self, token, receive):
        self.opened.append(Stream(self.url, token, receive))
        return self.opened[-1]

    def repeat(self, figures, count, step):
        """Takes the time of `count` steps."""
        start = time.perf_counter()
        for number in range(count):
            begun = time.perf_counter()
            try:
                step(number)
                figures.times.append(time.perf_counter() - begun)
            except FAILURES as error:
                figures.errors.append(sentence(error))
                if isinstance(error, Gone) or len(figures.errors) >= TOO_MANY:
                    break
            self.progress(number + 1, count)
        figures.seconds = time.perf_counter() - start

    def ping(self, figures, count):
        line = self.line()

        def step(_):
            now = int(time.time() * 1000)
            pong = json.loads(line.post("action=ping&timestamp=%d" % now))
            if pong != {"pong": now}:
                raise Mistake("not the pong of this ping: %s" % pong)

        self.repeat(figures, count, step)

    def register(self, figures, count):
        line = self.line()
        ids = set()

        def step(_):
            host = json.loads(line.post("action=host"))
            if host["hostToken"].count(".") != 2:
                raise Mistake("the hostToken is not a JWT")
            if host["hostId"] in ids:
                raise Mistake("the same hostId twice: %s" % host["hostId"])
            ids.add(host["hostId"])

        self.repeat(figures, count, step)

    def roundtrip(self, figures, count):
        line, reply = self.line(), self.line()
        account = figures.account = Account()

        def answer(data, _):
            reply.post("token=%s" % data["responseToken"], json.dumps(data["body"]).encode())

        host = json.loads(line.post("action=host"))
        streams = [self.stream(host["hostToken"], answer)]
        token = self.join(line, host)
        streams.append(self.stream(token, account.arrive))

        def step(number):
            line.post("token=%s" % token, account.message(0, number, self.options.size))
            if not account.wait(lambda: (0, number) in account.arrived, streams):
                raise Gone("a reply did not come")

        self.repeat(figures, count, step)

    def throughput(self, figures, count):
        line = self.line()
        account = figures.account = Account()
        host = json.loads(line.post("action=host"))
        streams = [self.stream(host["hostToken"], account.arrive)]
        senders = []
        for sender in range(self.options.concurrency):
            # A sender's own connection is opened, and warm, before the time begins.
            own = self.line()
            share = len(range(sender, count, self.options.concurrency))
            arguments = figures, own, sender, self.join(own, host), share
            senders.append(threading.Thread(target=self.send, args=arguments, daemon=True))
        start = time.perf_counter()
        for sender in senders:
            sender.start()
        while any(sender.is_alive() for sender in senders):
            self.progress(len(account.arrived), count)
            time.sleep(0.02)
        account.wait(lambda: not account.lost(), streams)
        figures.seconds = (account.last or time.perf_counter()) - (account.first or start)

    def send(self, figures, line, sender, token, count):
        for number in range(count):
            try:
                line.post("token=%s" % token, figures.account.message(sender, number, self.options.size))
            except FAILURES as error:
                figures.errors.append(sentence(error))
                if len(figures.errors) >= TOO_MANY:
                    return

    def join(self, line, host):
        query = "action=join&hostId=%s" % urllib.parse.quote(host["hostId"], safe="")
        return json.loads(line.post(query))["clientToken"]


COLUMNS = "%-11s %7s %10s %9s %9s %9s %6s %6s %9s  %s"


def row(name, figures):
    def number(value, form="%.2f"):
        return "-" if value is None else form % value

    account = figures.account
    words = (account.lost(), account.twice, account.disorder) if account else ("-", "-", "-")
    return COLUMNS % (
        (name, len(figures.times), number(figures.rate(), "%.1f"))
        + tuple(number(percentile(figures.times, percent)) for percent in (50, 95, 99))
        + words
        + ("ok" if figures.good() else "FAILED",)
    )


def show_progress(name):
    """Counts on the terminal; a log gets the rows only."""
    def progress(done, count):
        sys.stderr.write("\r%-11s %d of %d " % (name, done, count))
        sys.stderr.flush()

    return progress if sys.stderr.isatty() else lambda done, count: None


def clear_progress():
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def read_options():
    defaults = ", ".join("%s %d" % (name, count) for name, (_, count) in TESTS.items())
    parser = argparse.ArgumentParser(
        description="Measures UHST relays.",
        epilog="; ".join("%s: %s" % (name, what) for name, (what, _) in TESTS.items()) + ".")
    parser.add_argument("--relays", required=True, metavar="FILE",
                        help='JSON: [{"urls": ["http://localhost:8080"], "prefix": "local"}]')
    parser.add_argument("--tests", default=",".join(TESTS), help="which, comma separated (default: all)")
    parser.add_argument("--count", type=positive, help="how many of each (default: %s)" % defaults)
    parser.add_argument("--size", type=positive, default=64, help="bytes of a message (default: 64)")
    parser.add_argument("--concurrency", type=positive, default=4, help="clients of throughput (default: 4)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    options.tests = options.tests.split(",")
    for name in options.tests:
        if name not in TESTS:
            parser.error("--tests: %s is none of %s" % (name, ", ".join(TESTS)))
    try:
        with open(options.relays) as file:
            options.relays = [(relay.get("prefix", ""), url) for relay in json.load(file) for url in relay["urls"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        parser.error("--relays: %s" % (error or type(error).__name__))
    if not options.relays:
        parser.error("--relays: no URL in it")
    return options


def main():
    options = read_options()
    reports, good = [], True
    for prefix, url in options.relays:
        print("%s  %s" % (prefix, url))
        print(COLUMNS % ("test", "count", "rate/s", "p50 ms", "p95 ms", "p99 ms", "lost", "twice", "disorder", ""))
        tests = {}
        for name in options.tests:
            figures = Run(url, options, show_progress(name)).test(name)
            clear_progress()
            print(row(name, figures), flush=True)
            for error, times in collections.Counter(figures.errors).most_common(3):
                print("            %d × %s" % (times, error))
            tests[name] = figures.as_json()
            good = good and figures.good()
        print()
        reports.append({"prefix": prefix, "url": url, "tests": tests})
    if options.json:
        with open(options.json, "w") as file:
            json.dump(reports, file, indent=2)
            file.write("\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
