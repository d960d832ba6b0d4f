//! What several machines do when one node of their cluster goes, or a part of it moves: whoever talks by way of the others does not
//! notice, whoever talks by way of it is told so soon, and all streams go on.

use std::ops::Range;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::bare::timed;
use crate::machines::Machines;
use crate::outages::{Channel, SOON, WHILE, pair};
use crate::place::{LONG, until};
use crate::redis::Redis;
use crate::relay::{Host, Relay, Talk as _};
use crate::server::free_port;

const SLOTS: usize = 16384;
const NODES: usize = 3;

/// How long a node says nothing until the others take it for gone (ms).
const NODE_TIMEOUT: &str = "2000";

/// What a killed node has when it comes back.
const KEPT: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// Tokens are not to depend on the node that has the secret.
const SETTINGS: [(&str, &str); 1] = [("JWT_SECRET", "known to all machines of the test, and 32 bytes long at least")];

/// The nodes of a cluster but the first, and their machines, which have that one.
struct Cluster {
    machines: Machines,
    others: Vec<Redis>,
    _replica: Option<Redis>,
}

fn node() -> Option<Redis> {
    let port = free_port().to_string();
    let cluster = ["--cluster-enabled", "yes", "--cluster-port", &port, "--cluster-node-timeout", NODE_TIMEOUT];
    // Else nobody is served when one is away, and no replica takes over that has heard nothing for a while.
    let more = ["--cluster-require-full-coverage", "no", "--cluster-replica-validity-factor", "0"];
    Redis::start(&[&cluster[..], &more, &KEPT].concat())
}

/// Which slots a node has at the beginning.
fn slots_of(node: usize) -> Range<usize> {
    node * SLOTS / NODES..(node + 1) * SLOTS / NODES
}

impl Cluster {
    /// Three nodes, and one that takes over when the first has gone; `None` with a word on stderr where something is not installed.
    fn start(has_replica: bool) -> Option<Self> {
        let mut nodes = (0..NODES + usize::from(has_replica)).map(|_| node()).collect::<Option<Vec<_>>>()?;
        let place = |node: &Redis| {
            let about = node.ask(&["CLUSTER", "NODES"]);
            let bus = about.split(['@', ' ', ',']).nth(2).expect("it knows itself").to_owned();
            [node.port().to_string(), bus]
        };
        let [port, bus] = place(&nodes[0]);
        for (number, node) in nodes.iter().enumerate() {
            if number < NODES {
                let Range { start, end } = slots_of(number);
                node.ask(&["CLUSTER", "ADDSLOTSRANGE", &start.to_string(), &(end - 1).to_string()]);
            }
            node.ask(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
        }
        let all = format!("cluster_known_nodes:{}", nodes.len());
        until("the nodes know each other", LONG, || {
            nodes.iter().map(|node| node.ask(&["CLUSTER", "INFO"])).all(|info| {
                info.contains(&all) && info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384")
            })
        });
        let urls: Vec<_> = nodes.iter().take(NODES).map(|node| format!("127.0.0.1:{}", node.port())).collect();
        let replica = has_replica.then(|| nodes.remove(NODES));
        if let Some(replica) = &replica {
            replica.ask(&["CLUSTER", "REPLICATE", &nodes[0].ask(&["CLUSTER", "MYID"])]);
            until("it is a replica", LONG, || replica.ask(&["ROLE"]).contains("connected"));
        }
        let first = nodes.remove(0);
        let machines = Machines::at(&format!("redis://{}", urls.join(",")), first, &SETTINGS)?;
        Some(Self { machines, others: nodes, _replica: replica })
    }

    /// A pair that talks by way of this node.
    fn pair(&self, node: usize) -> Pair {
        loop {
            let pair = Pair::meet(&self.machines);
            if slots_of(node).contains(&self.slot_of(&pair)) {
                return pair;
            }
        }
    }

    fn slot_of(&self, pair: &Pair) -> usize {
        self.machines.redis.ask(&["CLUSTER", "KEYSLOT", &pair.key()]).parse().expect("a slot")
    }

    /// A pair by way of each node.
    fn pairs(&self) -> [Pair; NODES] {
        std::array::from_fn(|node| self.pair(node))
    }
}

/// A host at one machine, and its client at another.
struct Pair {
    host: Host,
    client: String,
    said: u64,
    to_host: Channel,
    to_client: Channel,
}

impl Pair {
    fn meet(machines: &Machines) -> Self {
        let (host, client, to_host, to_client) = pair(machines);
        Self { host, client, said: 0, to_host, to_client }
    }

    fn key(&self) -> String {
        let hash = Sha256::digest(&self.host.id);
        let hash = hash[..20].iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        format!("uhst:host:{{{hash}}}")
    }

    /// Says the next number both ways, at this machine: why not, and how long it took at most.
    fn say(&mut self, machine: &dyn Relay) -> (Option<String>, Duration) {
        self.said += 1;
        let (said, mut why, mut longest) = (self.said.to_string(), None, Duration::ZERO);
        for (channel, token) in [(&mut self.to_host, &self.client), (&mut self.to_client, &self.host.token)] {
            let (reply, time) = timed(|| machine.send(token, &said));
            longest = longest.max(time);
            if reply.status == 200 {
                channel.taken.push(self.said);
            } else {
                channel.perhaps.push(self.said);
                why = Some(reply.expect_error(503));
            }
        }
        (why, longest)
    }

    #[track_caller]
    fn hears(&mut self) {
        self.to_host.hears();
        self.to_client.hears();
    }

    /// Both hear each other as soon as there is somebody to ask, by streams that have been open all the time.
    #[track_caller]
    fn talks(&mut self, machines: &Machines) {
        for machine in machines.all() {
            until("it works", LONG, || self.say(machine).0.is_none());
            self.hears();
        }
    }

    /// Nobody notices anything.
    #[track_caller]
    fn talks_undisturbed(&mut self, machines: &Machines) {
        for machine in machines.all() {
            assert_eq!(self.say(machine).0, None);
            self.hears();
        }
    }

    /// Each is told soon, everywhere, that it cannot be done now.
    #[track_caller]
    fn is_refused(&mut self, machines: &Machines) {
        for machine in machines.all() {
            // On a machine with more tests than cores not always at the first try.
            until("it is told soon", LONG, || {
                let (why, time) = self.say(machine);
                let why = why.expect("nobody can be asked");
                assert!(why.starts_with("The relay's Redis "), "{why}");
                time < SOON
            });
        }
    }
}

#[test]
fn whoever_talks_by_way_of_other_nodes_does_not_notice_that_one_was_killed() {
    let Some(mut cluster) = Cluster::start(false) else { return };
    let [mut here, mut two, mut three] = cluster.pairs();
    here.talks(&cluster.machines);
    cluster.machines.redis.kill();
    let others = [&mut two, &mut three];
    for pair in others {
        pair.talks_undisturbed(&cluster.machines);
    }
    here.is_refused(&cluster.machines);
    std::thread::sleep(WHILE);
    here.is_refused(&cluster.machines);
    two.talks_undisturbed(&cluster.machines);
    three.talks_undisturbed(&cluster.machines);
    cluster.machines.redis.restart();
    here.talks(&cluster.machines);
}

#[test]
fn whoever_talks_by_way_of_other_nodes_does_not_notice_that_one_was_stopped() {
    let Some(cluster) = Cluster::start(false) else { return };
    let [mut here, mut two, mut three] = cluster.pairs();
    here.talks(&cluster.machines);
    cluster.machines.redis.freeze();
    for _ in 0..2 {
        here.is_refused(&cluster.machines);
        two.talks_undisturbed(&cluster.machines);
        three.talks_undisturbed(&cluster.machines);
        std::thread::sleep(WHILE);
    }
    cluster.machines.redis.go_on();
    here.talks(&cluster.machines);
}

#[test]
fn talks_go_on_when_the_replica_of_a_killed_node_takes_over() {
    let Some(mut cluster) = Cluster::start(true) else { return };
    let [mut here, mut two, _] = cluster.pairs();
    here.talks(&cluster.machines);
    cluster.machines.redis.kill();
    two.talks_undisturbed(&cluster.machines);
    here.talks(&cluster.machines);
    // It comes back as the other's replica.
    cluster.machines.redis.restart();
    std::thread::sleep(WHILE);
    here.talks(&cluster.machines);
    two.talks_undisturbed(&cluster.machines);
}

#[test]
fn talks_go_on_when_the_replica_of_a_stopped_node_takes_over() {
    let Some(cluster) = Cluster::start(true) else { return };
    let [mut here, mut two, _] = cluster.pairs();
    here.talks(&cluster.machines);
    cluster.machines.redis.freeze();
    here.talks(&cluster.machines);
    two.talks_undisturbed(&cluster.machines);
    // It may still take what it was sent before, which was answered 503, and has its former replica tell that.
    here.to_host.expect_late();
    here.to_client.expect_late();
    cluster.machines.redis.go_on();
    std::thread::sleep(WHILE);
    here.talks(&cluster.machines);
}

#[test]
fn talks_go_on_when_their_slot_moves_to_another_node() {
    let Some(cluster) = Cluster::start(false) else { return };
    let mut pair = cluster.pair(0);
    pair.talks(&cluster.machines);
    let (from, to, slot) = (&cluster.machines.redis, &cluster.others[0], cluster.slot_of(&pair).to_string());
    let [old, new] = [from, to].map(|node| node.ask(&["CLUSTER", "MYID"]));
    to.ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &old]);
    from.ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &new]);
    let keys = from.ask(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]);
    let keys: Vec<_> = keys.lines().collect();
    assert!(keys.len() > 3, "{keys:?}");
    let port = to.port().to_string();
    let migrate = |keys: &[&str]| from.ask(&[&["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"], keys].concat());
    assert_eq!(migrate(&keys[..2]), "OK");
    // Some are here and some there, and no script can have them all.
    pair.is_refused(&cluster.machines);
    assert_eq!(migrate(&keys[2..]), "OK");
    // All are there, and this one says of each request that it is to be asked for there.
    pair.talks(&cluster.machines);
    for node in [to, from, &cluster.others[1]] {
        node.ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &new]);
    }
    pair.talks(&cluster.machines);
}
