//! Times and rates, and what became of every message.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The times of many alike things.
#[derive(Default)]
pub struct Times(Vec<Duration>);

impl Times {
    pub fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Percentiles by nearest rank, in milliseconds.
    pub fn percentiles(&mut self) -> Value {
        self.0.sort_unstable();
        let at = |percent: usize| {
            let rank = (self.0.len() * percent).div_ceil(100).max(1);
            self.0.get(rank - 1).map(|&time| milliseconds(time))
        };
        json!({ "p50": at(50), "p95": at(95), "p99": at(99), "max": at(100) })
    }
}

/// Milliseconds, to the microsecond.
fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// So many in this time, a second.
pub fn rate(count: usize, time: Duration) -> f64 {
    if count == 0 { 0.0 } else { (count as f64 / time.as_secs_f64() * 10.0).round() / 10.0 }
}

/// Keeps account of messages: each is due once on one stream, after the earlier ones of its sender.
#[derive(Default)]
pub struct Ledger {
    /// By stream and sender, when the nth message was begun; taken out when it arrives.
    due: HashMap<(usize, usize), Vec<Due>>,
    /// Messages on their way.
    pub open: usize,
    pub twice: usize,
    pub out_of_order: usize,
}

struct Due {
    begun: Instant,
    arrived: bool,
}

impl Ledger {
    /// The next message of `sender` is on its way to `stream`; its number.
    pub fn send(&mut self, stream: usize, sender: usize, begun: Instant) -> usize {
        let messages = self.due.entry((stream, sender)).or_default();
        messages.push(Due { begun, arrived: false });
        self.open += 1;
        messages.len() - 1
    }

    /// A message has arrived; how long it took, unless it had arrived before.
    pub fn receive(&mut self, stream: usize, sender: usize, n: usize, at: Instant) -> Result<Option<Duration>, String> {
        let unknown = || format!("stream {stream} got message {n} of sender {sender}, which was never sent to it");
        let messages = self.due.get_mut(&(stream, sender)).ok_or_else(unknown)?;
        let due = messages.get_mut(n).ok_or_else(unknown)?;
        if due.arrived {
            self.twice += 1;
            return Ok(None);
        }
        due.arrived = true;
        let time = at - due.begun;
        self.open -= 1;
        if messages[n + 1..].iter().any(|later| later.arrived) {
            self.out_of_order += 1;
        }
        Ok(Some(time))
    }
}

#[cfg(test)]
mod tests {
    use super::{Ledger, Times};
    use std::time::{Duration, Instant};

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let mut times = Times::default();
        for ms in (1..=200).rev() {
            times.add(Duration::from_millis(ms));
        }
        let all = times.percentiles();
        assert_eq!([&all["p50"], &all["p95"], &all["p99"], &all["max"]], [100.0, 190.0, 198.0, 200.0]);
    }

    #[test]
    fn a_ledger_sees_what_is_lost_doubled_swapped_or_made_up() {
        let mut ledger = Ledger::default();
        let now = Instant::now();
        for n in 0..4 {
            assert_eq!(ledger.send(1, 7, now), n);
        }
        for n in [1, 0, 1, 3] {
            ledger.receive(1, 7, n, now).unwrap();
        }
        assert_eq!((ledger.open, ledger.twice, ledger.out_of_order), (1, 1, 1));
        assert!(ledger.receive(1, 7, 4, now).is_err());
        assert!(ledger.receive(2, 7, 0, now).is_err());
    }
}
