"""What the measurements share: starting what is measured, calling the load client, looking at processes, telling."""

import contextlib
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.realpath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(TOP, "target"))


def say(text):
    print(text, file=sys.stderr, flush=True)


# --- building and starting ---------------------------------------------------------------------------------------


def build_cgi():
    """The relay as a CGI program."""
    say("building relay.cgi")
    subprocess.run([os.path.join(TOP, "deploy", "build")], stdout=sys.stderr, check=True)
    return os.path.join(TOP, "target", "relay.cgi")


def build_load():
    say("building the load client")
    subprocess.run(
        ["cargo", "build", "--quiet", "--locked", "--release", "--target-dir", os.path.join(TARGET, "perf"),
         "--manifest-path", os.path.join(HERE, "load", "Cargo.toml")], check=True)
    return os.path.join(TARGET, "perf", "release", "load")


def install_peer(name, program):
    """The command that runs a program of npm, on 127.0.0.1 alone, in the versions of the lock file in the folder `name`."""
    source, folder = os.path.join(HERE, name), os.path.join(TARGET, "perf", name)
    path, stamp = os.path.join(folder, "node_modules", ".bin", program), os.path.join(folder, "installed")
    with open(os.path.join(source, "package-lock.json")) as file:
        lock = file.read()
    with contextlib.suppress(OSError), open(stamp) as file:
        if file.read() == lock and os.path.exists(path):
            lock = None
    if lock:
        say("installing what is in %s" % name)
        os.makedirs(folder, exist_ok=True)
        for file in "package.json", "package-lock.json", ".npmrc":
            shutil.copy(os.path.join(source, file), folder)
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=folder, stdout=sys.stderr,
                       check=True)
        with open(stamp, "w") as file:
            file.write(lock)
    return ["node", "--require", os.path.join(HERE, "peers", "loopback.cjs"), path]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def stopped_at_the_end(process):
    """Ends a process that is still there, whatever happened."""
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(server, url, name):
    """Until `url` answers, whatever it answers."""
    for _ in range(200):
        if server.poll() is not None:
            raise SystemExit("%s did not start" % name)
        try:
            ask(url, "action=ping")
            return
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return
            reason = error
        except OSError as error:
            reason = error
        time.sleep(0.05)
    raise SystemExit("%s does not answer: %s" % (name, reason))


@contextlib.contextmanager
def web_server(name, programs, variant=(), prepare=None):
    """A web server of deploy/ with these programs: the URL of its cgi-bin, the folder of that, and the run script's id.

    `prepare` gets the relay's data folder to put something into before the server starts.
    """
    with tempfile.TemporaryDirectory(prefix="uhst-perf-") as root:
        os.chmod(root, 0o755)
        cgi_bin = os.path.join(root, "cgi-bin")
        os.mkdir(cgi_bin)
        for program, source in programs.items():
            shutil.copy(source, os.path.join(cgi_bin, program))
            os.chmod(os.path.join(cgi_bin, program), 0o755)
        if prepare:
            prepare(os.path.join(cgi_bin, "data"))
        port = free_port()
        url = "http://127.0.0.1:%d/cgi-bin/" % port
        command = [os.path.join(TOP, "deploy", name, "run"), str(port), root, *variant]
        with stopped_at_the_end(subprocess.Popen(command)) as server:
            wait_for(server, url + "relay.cgi", name)
            yield url, cgi_bin, server.pid


def ask(url, query, body=b""):
    """The JSON of an answer to a POST, or, without a body, to a GET."""
    with urllib.request.urlopen("%s?%s" % (url, query), body, timeout=10) as answer:
        return json.load(answer)


# --- the load client ---------------------------------------------------------------------------------------------


class Load:
    """Calls the load client, and remembers what went wrong.

    Where it is `apart` it keeps to the last core. It sleeps and wakes in turn with what it measures, and where two programs do
    that, the kernel likes to run both on one core, in some rounds and not in others. Clients have machines of their own.
    """

    def __init__(self, program, apart=False):
        cores = sorted(os.sched_getaffinity(0))
        self.program = (["taskset", "-c", str(cores[-1])] if apart and len(cores) > 1 else []) + [program]
        self.errors = []
        self.cores = 0

    def __call__(self, *arguments):
        result = subprocess.run(self.command(arguments), stdout=subprocess.PIPE, text=True, timeout=300)
        return self.read(arguments, result.stdout, result.returncode)

    @contextlib.contextmanager
    def prepared(self, *arguments, runs):
        """A client that sets itself up now and measures later, each time it is called."""
        command = self.command(arguments + ("--runs", runs))
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        with stopped_at_the_end(process):
            yield Prepared(self, arguments, process)

    def command(self, arguments):
        return self.program + [str(argument) for argument in arguments]

    def read(self, arguments, output, code):
        if code not in (0, 1):
            raise SystemExit("load %s failed" % " ".join(map(str, arguments)))
        return self.judged(arguments, json.loads(output.splitlines()[-1]))

    def judged(self, arguments, report):
        wrong = {name: report.get(name) for name in ("errors", "lost", "twice", "out_of_order") if report.get(name)}
        if wrong:
            wrong["first_error"] = report.get("first_error")
            self.errors.append("%s: %s" % (" ".join(map(str, arguments)), json.dumps(wrong)))
        self.cores = max(self.cores, report["load_cores"])
        return report


class Prepared:
    def __init__(self, load, arguments, process):
        self.load, self.arguments, self.process = load, arguments, process

    def is_ready(self):
        """Waits for it."""
        return bool(self.process.stdout.readline())

    def __call__(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        report = self.process.stdout.readline()
        if not report:
            call = " ".join(str(argument) for argument in self.arguments)
            raise SystemExit("load %s ended with %s" % (call, self.process.wait(10)))
        return self.load.judged(self.arguments, json.loads(report))


# --- looking at processes ----------------------------------------------------------------------------------------


def processes(program):
    """The ids of the processes that run this very file."""
    here = os.stat(program)
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            there = os.stat("/proc/%s/exe" % name)
            if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino):
                found.append(int(name))
    return found


def descendants(pid):
    """The ids of the processes that a process has started, and those that these have started."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open("/proc/%s/stat" % name) as file:
            # The name of the program, in parentheses, may hold anything.
            parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
    family = {pid}
    while True:
        more = {child for child, parent in parents.items() if parent in family} - family
        if not more:
            return sorted(family - {pid})
        family |= more


def memory(pid):
    """KiB by the names of smaps_rollup."""
    with open("/proc/%d/smaps_rollup" % pid) as file:
        lines = [line.split() for line in file if line.rstrip().endswith("kB")]
    kib = {words[0].rstrip(":"): int(words[1]) for words in lines}
    kib["Private"] = kib["Private_Clean"] + kib["Private_Dirty"]
    return {name: kib[name] for name in ("Rss", "Pss", "Private", "Anonymous")}


def cpu_seconds(pid):
    """Of all threads, of those that have ended too, to the nanosecond."""
    return time.clock_gettime(~pid << 3 | 2)  # clock_getcpuclockid(3), which Python has for threads only


def descriptors(pid):
    """How many it has open."""
    return len(os.listdir("/proc/%d/fd" % pid))


def idle_streams(load, url, find, count, seconds):
    """Memory, descriptors and CPU of the processes that `find` finds, with `count` streams to which nobody sends.

    Nothing when they cannot be opened.
    """
    arguments = "streams", url, "--streams", count, "--rate", 0, "--seconds", seconds + 4
    with stopped_at_the_end(subprocess.Popen(load.command(arguments), stdout=subprocess.PIPE, text=True)) as client:
        if not client.stdout.readline():
            return None
        # Those of the last requests may still be ending.
        time.sleep(1)
        pids = find()
        start, before = time.monotonic(), {pid: cpu_seconds(pid) for pid in pids}
        time.sleep(seconds)
        # A machine that has much to do is late to end those of the last requests.
        pids = [pid for pid in pids if os.path.exists("/proc/%d" % pid)]
        used = {pid: cpu_seconds(pid) - before[pid] for pid in pids}
        took = time.monotonic() - start
        found = [dict(memory(pid), descriptors=descriptors(pid), cpu_percent=round(100 * used[pid] / took, 5)) for pid in pids]
        output, _ = client.communicate(timeout=60)
        load.read(arguments, output, client.returncode)
    return found


# --- telling -----------------------------------------------------------------------------------------------------


class Table:
    """Lines of what, value, spread, target and whether it is met."""

    def __init__(self):
        self.lines = []

    def line(self, what, values, form="%.2f", least=None, most=None):
        values = list(values)
        middle = statistics.median(values)
        around = "%s … %s" % (form % min(values), form % max(values)) if len(values) > 1 else ""
        target, met = "", None
        if least is not None:
            target, met = "at least " + form % least, middle >= least
        if most is not None:
            target, met = "at most " + form % most, middle <= most
        self.add(what, form % middle, target, met, around)

    def add(self, what, value, target="", met=None, around=""):
        self.lines.append({"what": what, "value": value, "spread": around, "target": target, "met": met})

    def show(self):
        width = max(len(line["what"]) for line in self.lines)
        form = "%-" + str(width) + "s %10s  %-21s %-17s %s"
        print(form % ("", "median", "lowest … highest", "target", ""))
        for line in self.lines:
            met = {True: "met", False: "NOT MET", None: ""}[line["met"]]
            print((form % (line["what"], line["value"], line["spread"], line["target"], met)).rstrip())


def is_ram_disk(folder):
    """Whether what is written there stays in memory."""
    with open("/proc/self/mounts") as file:
        mounts = {words[1]: words[2] for words in map(str.split, file)}
    folder = os.path.realpath(folder)
    while folder not in mounts:
        folder = os.path.dirname(folder)
    return mounts[folder] in ("tmpfs", "ramfs")


def prefer_ram_disk():
    """Temporary files go to a RAM disk, unless TMPDIR says where they go. CGI programs are among them."""
    place = "/dev/shm"
    if "TMPDIR" not in os.environ and os.access(place, os.W_OK) and not os.statvfs(place).f_flag & os.ST_NOEXEC:
        if is_ram_disk(place):
            tempfile.tempdir = place


def machine():
    with open("/proc/cpuinfo") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return "%d × %s, Linux %s" % (os.cpu_count(), models[0] if models else platform.machine(), platform.release())


def finish(table, load, found, json_file):
    """Prints the table and the errors, writes everything there if there is a place; the exit code."""
    table.show()
    for error in load.errors:
        print("ERROR: %s" % error)
    if json_file:
        found.update(table=table.lines, errors=load.errors)
        with open(json_file, "w") as file:
            json.dump(found, file, indent=1)
            file.write("\n")
    return 1 if load.errors else 0
