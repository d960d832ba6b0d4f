//! A client whose network dies: it says nothing, and neither does its machine.

use std::fs::File;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Serve;
use crate::place::{LONG, have, skip, until};
use crate::relay::Talk as _;
use crate::stream::Stream;

/// A network of its own, for as long as this lives.
struct Network(Child);

impl Network {
    /// `None` where a test may not have one.
    fn new() -> Option<Self> {
        let mut holder = Command::new("setpriv");
        // With a word from within, because the network is not there before.
        holder.args(["--pdeathsig", "KILL", "--", "unshare", "--net", "--", "sh", "-c", "echo; exec sleep 600"]);
        let mut network =
            Self(holder.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        let mut word = [0];
        let said = std::io::Read::read(network.0.stdout.as_mut().unwrap(), &mut word).unwrap();
        (said == 1).then_some(network)
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    /// This thread, and what it starts, is in it from now on.
    fn enter(&self) {
        let link = File::open(format!("/proc/{}/ns/net", self.pid().as_raw_nonzero())).unwrap();
        move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may do that");
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter();
                work()
            });
            inside.join().unwrap()
        })
    }

    /// `ip` with these arguments; false where it fails.
    fn ip(&self, arguments: &str) -> bool {
        self.within(|| {
            let done = Command::new("ip").args(arguments.split(' ')).output().expect("ip runs");
            if !done.status.success() {
                eprintln!("ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
            }
            done.status.success()
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cable between two networks: the server's at 10.213.0.1, and the client's at 10.213.0.2.
fn cable() -> Option<(Network, Network)> {
    if !have("ip") || !have("unshare") {
        skip("ip or unshare is not installed");
        return None;
    }
    let (Some(servers), Some(clients)) = (Network::new(), Network::new()) else {
        skip("only root can make a network namespace");
        return None;
    };
    let peer = format!("link add cable type veth peer name cable netns {}", clients.pid().as_raw_nonzero());
    let is_laid = servers.ip(&peer)
        && servers.ip("addr add 10.213.0.1/24 dev cable")
        && clients.ip("addr add 10.213.0.2/24 dev cable")
        && servers.ip("link set lo up")
        && servers.ip("link set cable up")
        && clients.ip("link set cable up");
    if !is_laid {
        skip("cannot lay a cable between two network namespaces");
        return None;
    }
    Some((servers, clients))
}

fn listen(address: SocketAddr, token: &str) -> Stream {
    let mut socket = TcpStream::connect_timeout(&address, LONG).expect("the server accepts connections");
    write!(socket, "GET /?token={token} HTTP/1.1\r\nHost: relay\r\n\r\n").unwrap();
    let mut stream = Stream::from_socket(socket).unwrap_or_else(|reply| panic!("no stream but {reply:?}"));
    stream.expect_comment("Connected.");
    stream
}

#[test]
fn a_client_whose_network_dies_is_reported_after_three_keep_alives() {
    // A thread of its own: whatever the test harness does next is not in that network.
    let test = std::thread::Builder::new().name("silence".to_owned()).spawn(|| {
        let Some((servers, clients)) = cable() else { return };
        servers.enter();
        let relay = Serve::at("10.213.0.1:0", &[("RELAY_KEEP_ALIVE", "1")]);
        let (host, mut host_stream) = relay.listening_host();
        let client = relay.join(&host.id);
        let address = relay.address;
        let mut stream = clients.within(|| listen(address, &client));
        relay.send(&client, "1").expect(200);
        let event = host_stream.event();
        relay.send(&event.response_token(), "2").expect(200);
        assert_eq!(stream.body(), serde_json::json!(2));
        let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", relay.pid().as_raw_nonzero())).unwrap().count();
        let before = descriptors();

        assert!(clients.ip("link set cable down"));
        let start = Instant::now();
        let said = host_stream.event();
        let time = start.elapsed();
        assert_eq!((said.name.as_str(), &said.json()["eventType"]), ("relay_event", &"client_closed".into()));
        // A keep-alive, and three more; the rest is for a slow machine. It was a minute once.
        assert!(time < Duration::from_secs(30), "{time:?}");
        relay.send(&event.response_token(), "3").expect_error(400);
        until("its connection has ended", LONG, || descriptors() < before);
        drop(stream);
    });
    if let Err(panic) = test.unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}
