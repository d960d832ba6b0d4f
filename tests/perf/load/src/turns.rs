//! A closed loop: each worker takes one turn after another, and begins the next when the last is over.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Client, Key, PATIENCE, Result, What};
use crate::figures::{Ledger, Times, rate};
use crate::sse::Event;

/// How long and by how many.
pub struct Plan {
    pub connections: usize,
    pub stop: Stop,
    /// Turns before the measurement begins.
    pub warmup: usize,
}

#[derive(Clone, Copy)]
pub enum Stop {
    After(Duration),
    Count(usize),
}

/// What a turn is: a POST, its answer, and as many events as it waits for.
pub trait Work {
    /// The request that begins a turn of `worker`, and how many events end it.
    fn begin(&mut self, client: &Client, worker: usize, begun: Instant) -> (Vec<u8>, usize);

    /// Is this the right answer?
    fn answer(&mut self, key: Key, status: u16, body: &[u8]) -> Result<()>;

    /// An event came. Whose turn it belongs to and how long it took, if it is one that was waited for or timed.
    fn event(
        &mut self,
        _client: &mut Client,
        _key: Key,
        event: &Event,
        _at: Instant,
    ) -> Result<Option<(usize, Duration)>> {
        Err(format!("an event out of the blue: {}", event.data))
    }

    /// What is known of the messages sent, for work that sends any.
    fn ledger(&self) -> Option<&Ledger> {
        None
    }
}

struct Worker {
    key: Key,
    begun: Instant,
    answered: bool,
    waits_for: usize,
    idle: bool,
}

/// More errors than this end a run: they would only repeat themselves.
const TOO_MANY: usize = 100;

/// What has been measured since the warm-up, and the errors since the beginning.
struct Tally {
    start: Instant,
    cpu: f64,
    answers: Times,
    last_answer: Instant,
    deliveries: Times,
    last_delivery: Instant,
    errors: Vec<String>,
}

impl Tally {
    fn begin(errors: Vec<String>) -> Self {
        let now = Instant::now();
        Self {
            start: now,
            cpu: cpu_time(),
            answers: Times::default(),
            last_answer: now,
            deliveries: Times::default(),
            last_delivery: now,
            errors,
        }
    }

    fn report(mut self, client: &Client, plan: &Plan, ledger: Option<&Ledger>) -> Value {
        let load = (cpu_time() - self.cpu) / self.start.elapsed().as_secs_f64();
        let mut report = json!({
            "connections": plan.connections,
            "count": self.answers.count(),
            "seconds": (self.last_answer - self.start).as_secs_f64(),
            "rate": rate(self.answers.count(), self.last_answer - self.start),
            "answer_ms": self.answers.percentiles(),
            "errors": self.errors.len(),
            "first_error": self.errors.first(),
            "connects": client.connects,
            "resent": client.resent,
            "load_cores": (load * 1000.0).round() / 1000.0,
        });
        if let Some(ledger) = ledger {
            report["delivered"] = self.deliveries.count().into();
            report["delivery_rate"] = rate(self.deliveries.count(), self.last_delivery - self.start).into();
            report["delivery_ms"] = self.deliveries.percentiles();
            report["lost"] = ledger.open.into();
            report["twice"] = ledger.twice.into();
            report["out_of_order"] = ledger.out_of_order.into();
        }
        report
    }
}

/// The connections of the workers.
pub fn lines(client: &mut Client, plan: &Plan) -> Vec<Key> {
    (0..plan.connections).map(|_| client.line()).collect()
}

/// Lets the workers take turns, each on its own one of `lines`, and reports.
pub fn run(client: &mut Client, plan: &Plan, lines: &[Key], work: &mut dyn Work) -> Result<Value> {
    let now = Instant::now();
    let mut workers: Vec<Worker> =
        lines.iter().map(|&key| Worker { key, begun: now, answered: true, waits_for: 0, idle: true }).collect();
    let mut tally = Tally::begin(Vec::new());
    let mut warm = plan.warmup == 0;
    let mut begun = 0;
    loop {
        let may_begin = |begun: usize| match plan.stop {
            Stop::After(time) => !warm || tally.start.elapsed() < time,
            Stop::Count(count) => begun < count + plan.warmup,
        };
        for (number, worker) in workers.iter_mut().enumerate() {
            if worker.answered && worker.waits_for == 0 {
                worker.idle = true;
                if tally.errors.len() < TOO_MANY && may_begin(begun) {
                    begun += 1;
                    worker.begun = Instant::now();
                    let (request, waits_for) = work.begin(client, number, worker.begun);
                    (worker.answered, worker.waits_for, worker.idle) = (false, waits_for, false);
                    client.send(worker.key, request);
                }
            }
        }
        let idle = workers.iter().all(|worker| worker.idle);
        if idle && work.ledger().is_none_or(|ledger| ledger.open == 0) {
            break;
        }
        let Some(happening) = client.next(Instant::now() + PATIENCE)? else {
            if !idle {
                tally.errors.push("nothing came any more, with turns under way".to_owned());
            }
            break;
        };
        let at = happening.at;
        let worker = workers.iter_mut().find(|worker| worker.key == happening.key);
        match (happening.what, worker) {
            (What::Answer { status, body }, Some(worker)) => {
                tally.last_answer = at;
                worker.answered = true;
                tally.answers.add(at - worker.begun);
                tally.errors.extend(work.answer(happening.key, status, &body).err());
            }
            (What::Failed(why), Some(worker)) => {
                (worker.answered, worker.waits_for) = (true, 0);
                tally.errors.push(why);
            }
            (What::Answer { status, body }, None) => {
                tally.errors.extend(work.answer(happening.key, status, &body).err());
            }
            (What::Failed(why), None) => {
                tally.errors.push(why);
                break;
            }
            (What::Event(event), _) => match work.event(client, happening.key, &event, at) {
                Ok(Some((number, time))) => {
                    tally.last_delivery = at;
                    tally.deliveries.add(time);
                    let worker = &mut workers[number];
                    worker.waits_for = worker.waits_for.saturating_sub(1);
                }
                Ok(None) => {}
                Err(error) => tally.errors.push(error),
            },
            (What::Opened, _) => {}
        }
        if !warm && tally.answers.count() >= plan.warmup {
            warm = true;
            tally = Tally::begin(tally.errors);
        }
    }
    Ok(tally.report(client, plan, work.ledger()))
}

/// The CPU time that this program has used: how far the load itself is from being the limit.
/// In seconds.
pub fn cpu_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default().as_secs_f64()
}
