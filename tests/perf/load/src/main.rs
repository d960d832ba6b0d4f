//! Puts load on a UHST relay and prints what came of it: one JSON object a line, exit code 1 on any error or loss.
//!
//! Works against any relay that speaks the protocol: it does not care for the text of an answer to a message,
//! and does without event ids and without `action=ping` where a relay has none. A host listens before clients join it.

mod client;
mod fanout;
mod figures;
mod http;
mod relay;
mod sse;
mod streams;
mod turns;
mod websocket;

use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use client::{Client, Key, Result};
use figures::Ledger;
use relay::{Inbox, Message};
use sse::Event;
use turns::{Plan, Stop, Work};

const USAGE: &str = "\
load TEST URL [--option value]...

  ping       ask for a pong, and check it
  request    send the same request again and again: --method M (else POST), --query Q, --size BYTES of body (0: none),
             --expect STATUS
  register   register a host
  post       send messages to hosts that listen: --hosts N
  oneway     send a message and wait until its event has been read
  roundtrip  send a message to a host, which replies: until the reply's event has been read
  streams    open --streams N, spread --rate R messages a second over them for --seconds S
  fanout     one sends to --readers N, with --ahead N messages under way: --to uhst (a host to its clients), bus or nchan
             (URL is that of the bus, or of a nchan_pubsub); a message has arrived when all have it. --also URL: half of
             the readers listen there, at another node
  websocket  an echo: --connections N, each with --ahead N messages of --size BYTES under way, for --seconds S;
             with --ahead 0 they are only there, and it prints {\"ready\":true} first

All but `streams` and `websocket` take --seconds S or --count N, --warmup N (turns not counted), and --runs N: set up once,
print {\"ready\":true}, and then measure each time a line comes in, N times at most. Those but `fanout` take --connections N:
requests under way at once.
All that send messages take --size BYTES.";

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(faultless) => ExitCode::from(u8::from(!faultless)),
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::from(2)
        }
    }
}

/// Measures and prints; whether nothing went wrong.
fn run(arguments: Vec<String>) -> Result<bool> {
    let mut arguments = arguments.into_iter();
    let (Some(test), Some(url)) = (arguments.next(), arguments.next()) else {
        return Err(USAGE.to_owned());
    };
    let mut options = Options::read(arguments)?;
    if test == "websocket" {
        let plan = websocket::Plan {
            connections: options.number("connections", 1)?,
            ahead: options.number("ahead", 1)?,
            time: options.seconds("seconds", 2.0)?,
            size: options.number("size", 64)?,
        };
        options.all_known()?;
        return print(websocket::run(&http::Target::parse(&url)?, &plan)?, &test, &url);
    }
    let mut client = Client::new(http::Target::parse(&url)?)?;
    let size = options.number("size", 64)?;
    if test == "streams" {
        let plan = streams::Plan {
            streams: options.number("streams", 200)?,
            rate: options.number("rate", 100)?,
            time: options.seconds("seconds", 10.0)?,
            size,
        };
        options.all_known()?;
        return print(streams::run(&mut client, &plan)?, &test, &url);
    }
    let stop = match options.0.remove("count") {
        Some(count) => Stop::Count(count.parse().map_err(|_| format!("--count {count}: not a number"))?),
        None => Stop::After(options.seconds("seconds", 2.0)?),
    };
    let warmup = options.number("warmup", 20)?;
    let runs: Option<usize> = match options.0.remove("runs") {
        Some(count) => Some(count.parse().map_err(|_| format!("--runs {count}: not a number"))?),
        None => None,
    };
    let mut measure: Box<dyn FnMut() -> Result<Value>> = if test == "fanout" {
        let plan = fanout::Plan { ahead: options.number("ahead", 1)?, stop, warmup, size };
        let to: String = options.number("to", "uhst".to_owned())?;
        let other = options.0.remove("also").map(|url| Client::new(http::Target::parse(&url)?)).transpose()?;
        let mut fanout = fanout::FanOut::new(client, other, &to, options.number("readers", 10)?)?;
        Box::new(move || fanout.run(&plan))
    } else {
        let one_at_a_time = matches!(test.as_str(), "oneway" | "roundtrip");
        let plan =
            Plan { connections: options.number("connections", if one_at_a_time { 1 } else { 4 })?, stop, warmup };
        let mut work = work(&test, &mut client, &plan, size, &mut options)?;
        let keys = turns::lines(&mut client, &plan);
        Box::new(move || turns::run(&mut client, &plan, &keys, work.as_mut()))
    };
    options.all_known()?;
    let Some(runs) = runs else {
        return print(measure()?, &test, &url);
    };
    // What is compared takes turns, and a stream can take seconds to begin: so it is begun before.
    print(json!({ "ready": true }), &test, &url)?;
    let mut faultless = true;
    for line in std::io::stdin().lines().take(runs) {
        line.map_err(|error| error.to_string())?;
        faultless &= print(measure()?, &test, &url)?;
    }
    Ok(faultless)
}

/// What the workers of a test do.
fn work(test: &str, client: &mut Client, plan: &Plan, size: usize, options: &mut Options) -> Result<Box<dyn Work>> {
    Ok(match test {
        "ping" => Box::new(Ping),
        "request" => Box::new(Request {
            method: options.0.remove("method").unwrap_or_else(|| "POST".to_owned()),
            query: options.0.remove("query").unwrap_or_default(),
            body: if size == 0 { Vec::new() } else { Message { from: 0, n: 0 }.body(size) },
            expect: options.number("expect", 200)?,
        }),
        "register" => Box::new(Register),
        "post" => Box::new(Messages::new(client, plan, options.number("hosts", 1)?, size, false)?),
        "oneway" => Box::new(Messages::new(client, plan, 1, size, true)?),
        "roundtrip" => Box::new(RoundTrip::new(client, plan, size)?),
        _ => return Err(USAGE.to_owned()),
    })
}

/// Prints a report; whether nothing went wrong.
fn print(mut report: Value, test: &str, url: &str) -> Result<bool> {
    report["test"] = test.into();
    report["url"] = url.into();
    writeln!(std::io::stdout(), "{report}").map_err(|error| error.to_string())?;
    let bad = |name: &str| report[name].as_u64().unwrap_or(0) > 0;
    Ok(!["errors", "lost", "twice", "out_of_order"].into_iter().any(bad))
}

/// `--name value`, in any order.
struct Options(HashMap<String, String>);

impl Options {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = HashMap::new();
        while let Some(argument) = arguments.next() {
            let name = argument.strip_prefix("--").ok_or_else(|| format!("{argument}: not an option\n{USAGE}"))?;
            let value = arguments.next().ok_or_else(|| format!("{argument} wants a value"))?;
            options.insert(name.to_owned(), value);
        }
        Ok(Self(options))
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str, default: T) -> Result<T> {
        match self.0.remove(name) {
            Some(text) => text.parse().map_err(|_| format!("--{name} {text}: not a number")),
            None => Ok(default),
        }
    }

    fn seconds(&mut self, name: &str, default: f64) -> Result<Duration> {
        Duration::try_from_secs_f64(self.number(name, default)?).map_err(|error| format!("--{name}: {error}"))
    }

    /// An option that nobody asked for is a typing error, or does not belong to this test.
    fn all_known(&self) -> Result<()> {
        match self.0.keys().next() {
            Some(name) => Err(format!("--{name}: not an option of this test\n{USAGE}")),
            None => Ok(()),
        }
    }
}

fn expect_200(status: u16, body: &[u8]) -> Result<()> {
    if status == 200 { Ok(()) } else { Err(relay::refusal(status, body)) }
}

/// The same time for every ping, so that a program with one fixed answer can be held against the relay.
const TIMESTAMP: u64 = 1_700_000_000_000;

struct Ping;

impl Work for Ping {
    fn begin(&mut self, client: &Client, _worker: usize, _begun: Instant) -> (Vec<u8>, usize) {
        (client.target.post(&format!("action=ping&timestamp={TIMESTAMP}"), b""), 0)
    }

    fn answer(&mut self, _key: Key, status: u16, body: &[u8]) -> Result<()> {
        expect_200(status, body)?;
        let answer: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        if answer == json!({ "pong": TIMESTAMP }) {
            Ok(())
        } else {
            Err(format!("not the pong of this ping: {answer}"))
        }
    }
}

struct Request {
    method: String,
    query: String,
    body: Vec<u8>,
    expect: u16,
}

impl Work for Request {
    fn begin(&mut self, client: &Client, _worker: usize, _begun: Instant) -> (Vec<u8>, usize) {
        (client.target.request(&self.method, &self.query, &self.body), 0)
    }

    fn answer(&mut self, _key: Key, status: u16, body: &[u8]) -> Result<()> {
        if status == self.expect { Ok(()) } else { Err(relay::refusal(status, body)) }
    }
}

struct Register;

impl Work for Register {
    fn begin(&mut self, client: &Client, _worker: usize, _begun: Instant) -> (Vec<u8>, usize) {
        (client.target.post("action=host", b""), 0)
    }

    fn answer(&mut self, _key: Key, status: u16, body: &[u8]) -> Result<()> {
        expect_200(status, body)?;
        serde_json::from_slice::<relay::Host>(body).map(drop).map_err(|error| error.to_string())
    }
}

/// Clients that send to their hosts: worker number w to host w modulo hosts.
struct Messages {
    tokens: Vec<String>,
    hosts: Vec<Key>,
    ledger: Ledger,
    inbox: Inbox,
    size: usize,
    /// A turn ends when its message has arrived, not when it has been answered.
    awaited: bool,
}

impl Messages {
    fn new(client: &mut Client, plan: &Plan, hosts: usize, size: usize, awaited: bool) -> Result<Self> {
        let registered = relay::register(client, hosts.max(1))?;
        let tokens: Vec<&str> = registered.iter().map(|host| host.host_token.as_str()).collect();
        let hosts = relay::listen(client, &tokens)?;
        let ids: Vec<&str> =
            (0..plan.connections).map(|worker| registered[worker % hosts.len()].host_id.as_str()).collect();
        let tokens = relay::join(client, &ids)?;
        Ok(Self { tokens, hosts, ledger: Ledger::default(), inbox: Inbox::default(), size, awaited })
    }
}

impl Work for Messages {
    fn begin(&mut self, client: &Client, worker: usize, begun: Instant) -> (Vec<u8>, usize) {
        let n = self.ledger.send(self.hosts[worker % self.hosts.len()], worker, begun);
        let body = Message { from: worker, n }.body(self.size);
        (client.target.post(&format!("token={}", self.tokens[worker]), &body), self.awaited.into())
    }

    fn answer(&mut self, _key: Key, status: u16, body: &[u8]) -> Result<()> {
        expect_200(status, body)
    }

    fn event(
        &mut self,
        _client: &mut Client,
        key: Key,
        event: &Event,
        at: Instant,
    ) -> Result<Option<(usize, Duration)>> {
        let Some(Message { from, n }) = self.inbox.read(key, event)?.map(|delivery| delivery.body) else {
            return Ok(None);
        };
        Ok(self.ledger.receive(key, from, n, at)?.map(|time| (from, time)))
    }

    fn ledger(&self) -> Option<&Ledger> {
        Some(&self.ledger)
    }
}

/// One host that replies to each message of its clients, one client a worker.
struct RoundTrip {
    tokens: Vec<String>,
    host: Key,
    streams: Vec<Key>,
    /// Connections of the host that have no reply under way.
    free: Vec<Key>,
    replying: HashSet<Key>,
    ledger: Ledger,
    inbox: Inbox,
    size: usize,
}

impl RoundTrip {
    fn new(client: &mut Client, plan: &Plan, size: usize) -> Result<Self> {
        let registered = relay::register(client, 1)?.remove(0);
        let host = relay::listen(client, &[&registered.host_token])?[0];
        let tokens = relay::join(client, &vec![registered.host_id.as_str(); plan.connections])?;
        let streams = relay::listen(client, &tokens.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(Self {
            tokens,
            host,
            streams,
            free: Vec::new(),
            replying: HashSet::new(),
            ledger: Ledger::default(),
            inbox: Inbox::default(),
            size,
        })
    }
}

impl Work for RoundTrip {
    fn begin(&mut self, client: &Client, worker: usize, begun: Instant) -> (Vec<u8>, usize) {
        let n = self.ledger.send(self.streams[worker], worker, begun);
        let body = Message { from: worker, n }.body(self.size);
        (client.target.post(&format!("token={}", self.tokens[worker]), &body), 1)
    }

    fn answer(&mut self, key: Key, status: u16, body: &[u8]) -> Result<()> {
        if self.replying.remove(&key) {
            self.free.push(key);
        }
        expect_200(status, body)
    }

    fn event(
        &mut self,
        client: &mut Client,
        key: Key,
        event: &Event,
        at: Instant,
    ) -> Result<Option<(usize, Duration)>> {
        let Some(delivery) = self.inbox.read(key, event)? else {
            return Ok(None);
        };
        if key != self.host {
            let Message { from, n } = delivery.body;
            return Ok(self.ledger.receive(key, from, n, at)?.map(|time| (from, time)));
        }
        let token = delivery.response_token.ok_or("a message to the host without a responseToken")?;
        let line = self.free.pop().unwrap_or_else(|| client.line());
        self.replying.insert(line);
        client.send(line, client.target.post(&format!("token={token}"), &delivery.body.body(self.size)));
        Ok(None)
    }

    fn ledger(&self) -> Option<&Ledger> {
        Some(&self.ledger)
    }
}
