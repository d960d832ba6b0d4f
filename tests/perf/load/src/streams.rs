//! An open loop: many streams that are idle but for a steady trickle of messages, sent when they are due and
//! not when the relay is ready for them.

use std::io::Write as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Client, Key, PATIENCE, Result, What};
use crate::figures::{Ledger, Times};
use crate::relay::{self, Inbox, Message};
use crate::turns::cpu_time;

/// How long an answer may take before another connection is opened for what is due.
const A_LOOK: Duration = Duration::from_millis(1);

pub struct Plan {
    pub streams: usize,
    /// Messages a second in all; 0 leaves the streams idle.
    pub rate: u32,
    pub time: Duration,
    pub size: usize,
}

/// Half of the streams are hosts, half are clients, one a host. A host is sent to by its client, a client by its host.
struct Stream {
    key: Key,
    /// Whose messages arrive here.
    peer_token: String,
}

pub fn run(client: &mut Client, plan: &Plan) -> Result<Value> {
    let opening = Instant::now();
    let streams = open(client, plan.streams)?;
    let opened = opening.elapsed();
    // Whoever started this wants to look at the relay's processes now.
    println!("{}", json!({ "test": "streams", "open": streams.len(), "opened_in_seconds": opened.as_secs_f64() }));
    std::io::stdout().flush().map_err(|error| error.to_string())?;

    let (mut ledger, mut inbox) = (Ledger::default(), Inbox::default());
    let (mut deliveries, mut answers) = (Times::default(), Times::default());
    let (mut errors, mut sent) = (Vec::new(), 0_u32);
    let mut free: Vec<Key> = Vec::new();
    let mut busy: Vec<(Key, Instant)> = Vec::new();
    let (start, cpu) = (Instant::now(), cpu_time());
    let due = |sent: u32| start + Duration::from_secs(1) * sent / plan.rate.max(1);
    let end = start + plan.time;
    let mut quiet_until = end + PATIENCE;
    loop {
        let now = Instant::now();
        let more = plan.rate > 0 && due(sent) < end;
        let is_due = more && due(sent) <= now;
        // With so many connections the kernel looks for a free port for milliseconds: an answer that is there frees one.
        let happening = if is_due && free.is_empty() { client.next(Instant::now() + A_LOOK)? } else { None };
        if is_due && happening.is_none() {
            let to = sent as usize % streams.len();
            let n = ledger.send(streams[to].key, to, now);
            let query = format!("token={}", streams[to].peer_token);
            let key = free.pop().unwrap_or_else(|| client.line());
            busy.push((key, now));
            client.send(key, client.target.post(&query, &Message { from: to, n }.body(plan.size)));
            sent += 1;
            continue;
        }
        if now >= end && busy.is_empty() && ledger.open == 0 {
            break;
        }
        let wake = if more {
            due(sent)
        } else if now < end {
            end
        } else {
            quiet_until
        };
        let happening = if happening.is_some() { happening } else { client.next(wake)? };
        let Some(happening) = happening else {
            if now >= end {
                break;
            }
            continue;
        };
        quiet_until = happening.at.max(end) + PATIENCE;
        match happening.what {
            What::Answer { status, body } => {
                if let Some(place) = busy.iter().position(|&(key, _)| key == happening.key) {
                    answers.add(happening.at - busy.swap_remove(place).1);
                    free.push(happening.key);
                }
                if status != 200 {
                    errors.push(relay::refusal(status, &body));
                }
            }
            What::Event(event) => match inbox.read(happening.key, &event) {
                Ok(Some(delivery)) => {
                    let Message { from, n } = delivery.body;
                    match ledger.receive(happening.key, from, n, happening.at) {
                        Ok(time) => time.into_iter().for_each(|time| deliveries.add(time)),
                        Err(error) => errors.push(error),
                    }
                }
                Ok(None) => errors.push(format!("an event of the relay's own: {}", event.data)),
                Err(error) => errors.push(error),
            },
            What::Failed(why) => {
                busy.retain(|&(key, _)| key != happening.key);
                errors.push(why);
            }
            What::Opened => {}
        }
    }
    let took = start.elapsed().as_secs_f64();
    Ok(json!({
        "streams": streams.len(),
        "opened_in_seconds": opened.as_secs_f64(),
        "seconds": took,
        "sent": sent,
        "answer_ms": answers.percentiles(),
        "delivered": deliveries.count(),
        "delivery_ms": deliveries.percentiles(),
        "lost": ledger.open,
        "twice": ledger.twice,
        "out_of_order": ledger.out_of_order,
        "errors": errors.len() + busy.len(),
        "first_error": errors.first(),
        "connects": client.connects,
        "resent": client.resent,
        "load_cores": ((cpu_time() - cpu) / took * 1000.0).round() / 1000.0,
    }))
}

fn open(client: &mut Client, count: usize) -> Result<Vec<Stream>> {
    let hosts = relay::register(client, count.div_ceil(2))?;
    let host_tokens: Vec<&str> = hosts.iter().map(|host| host.host_token.as_str()).collect();
    let host_keys = relay::listen(client, &host_tokens)?;
    let ids: Vec<&str> = hosts.iter().map(|host| host.host_id.as_str()).collect();
    let client_tokens = relay::join(client, &ids)?;
    // With an odd count the last host has a client that does not listen.
    let listening: Vec<&str> = client_tokens.iter().take(count / 2).map(String::as_str).collect();
    let client_keys = relay::listen(client, &listening)?;
    let mut streams = Vec::with_capacity(count);
    for (key, peer_token) in host_keys.into_iter().zip(&client_tokens) {
        streams.push(Stream { key, peer_token: peer_token.clone() });
    }
    for (key, peer_token) in client_keys.into_iter().zip(host_tokens) {
        streams.push(Stream { key, peer_token: peer_token.to_owned() });
    }
    Ok(streams)
}
