//! Broken disks, folders and files: a clear answer, nothing lost that was answered 200, and well again once the cause is gone.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bare::{Bare, finish};
use crate::place::{
    LONG, everything_below, files_of, give_to, is_root, kill, new_record, node_files, set_mode, skip, until, user,
    write_settings,
};
use crate::relay::{Call, Relay as _, Reply, Talk as _, encode};
use crate::stream::{Item, Stream};
use crate::token;

/// A small disk as the relay's data folder.
pub struct Disk(PathBuf);

impl Disk {
    /// `None` where a test may not mount anything.
    pub fn under(relay: &mut Bare, size: &str) -> Option<Self> {
        let place = relay.folder().join("disk");
        fs::create_dir(&place).unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(&place).output();
        let mount = mount.expect("mount runs");
        if !mount.status.success() {
            skip(&format!("cannot mount a tmpfs: {}", String::from_utf8_lossy(&mount.stderr).trim()));
            return None;
        }
        relay.set("RELAY_DATA_DIR", place.to_str().unwrap());
        Some(Self(place))
    }

    fn remount(&self, option: &str) {
        let done =
            Command::new("mount").args(["-o", &format!("remount,{option}")]).arg(&self.0).status().expect("mount runs");
        assert!(done.success(), "remount {option}");
    }

    /// Somebody else's file takes all that is left.
    pub fn fill(&self, size: usize) {
        let mut filler = fs::File::create(self.0.join("filler")).unwrap();
        for _ in 0..size / 4096 {
            if filler.write_all(&[0; 4096]).is_err() {
                return;
            }
        }
    }

    pub fn clear(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_loses_nothing_that_was_accepted() {
    let mut relay = Bare::new();
    let Some(disk) = Disk::under(&mut relay, "1m") else { return };
    disk.fill(200_000);
    let host = relay.host("");
    let client = relay.join(&host.id);
    let mut accepted = Vec::new();
    let mut number = 0;
    let mut send = |accepted: &mut Vec<u64>, size: usize| {
        number += 1;
        let reply = relay.send(&client, format!("[{number},\"{}\"]", "x".repeat(size)));
        if reply.status == 200 {
            accepted.push(number);
        }
        reply
    };
    let fill = |accepted: &mut Vec<u64>, size: usize, send: &mut dyn FnMut(&mut Vec<u64>, usize) -> Reply| {
        loop {
            let reply = send(accepted, size);
            if reply.status != 200 {
                return reply;
            }
            assert!(accepted.len() < 20_000, "the disk does not fill");
        }
    };
    // Large ones until it is full, then small ones into what is left: a record may not be written half.
    for size in [50_000, 3_000, 10] {
        let reason = fill(&mut accepted, size, &mut send).expect_error(507);
        assert!(reason.to_lowercase().contains("full") || reason.contains("space"), "{reason}");
    }
    assert!(accepted.len() > 15);
    assert!(relay.log().contains("full"), "the server's log names the cause: {}", relay.log());
    relay.post("action=host&hostId=other", "").expect_error(507);
    relay.post("action=ping", "").expect(200);
    let reply = relay.try_join(&host.id);
    assert!([200, 507].contains(&reply.status), "{reply:?}");
    // A stream that cannot open now may open later.
    let opened = relay.listen(&format!("token={}", host.token), &[]);

    disk.clear();
    let mut stream = opened.unwrap_or_else(|reply| {
        reply.expect_error(507);
        relay.open(&host.token)
    });
    for number in &accepted {
        assert_eq!(stream.body()[0], json!(number), "what was accepted, in order, and nothing else");
    }
    until("there is room again", LONG, || send(&mut accepted, 10).status == 200);
    assert_eq!(stream.body()[0], json!(accepted.last().unwrap()));
    let other = relay.host("other");
    let mut other_stream = relay.open(&other.token);
    relay.send(&relay.join("other"), "1").expect(200);
    assert_eq!(other_stream.body(), json!(1));
}

#[test]
fn a_small_disk_serves_a_host_that_listens() {
    let mut relay = Bare::with(&[("RELAY_MESSAGE_LIFETIME", "2")]);
    let Some(_disk) = Disk::under(&mut relay, "1m") else { return };
    let (host, mut stream) = relay.listening_host();
    let client = relay.join(&host.id);
    // Three times what the disk holds. When it is full for a moment, the sender is told to wait, and may go on then.
    for number in 0..60 {
        let message = format!("[{number},\"{}\"]", "x".repeat(50_000));
        until("there is room again", LONG, || {
            let reply = relay.send(&client, &message);
            let status = reply.status;
            assert!(status == 200 || !reply.expect_error(507).is_empty());
            status == 200
        });
        assert_eq!(stream.body()[0], json!(number));
    }
}

#[test]
fn a_disk_that_turns_read_only_is_an_error_until_it_is_writable() {
    let mut relay = Bare::new();
    let Some(disk) = Disk::under(&mut relay, "1m") else { return };
    let host = relay.host("");
    let client = relay.join(&host.id);
    relay.send(&client, "1").expect(200);
    disk.remount("ro");
    relay.send(&client, "2").expect_error(500);
    relay.post("action=host", "").expect_error(500);
    assert!(relay.log().to_lowercase().contains("read-only"), "the server's log names the cause: {}", relay.log());
    disk.remount("rw");
    relay.send(&client, "3").expect(200);
    let mut stream = relay.open(&host.token);
    assert_eq!([stream.body(), stream.body()], [json!(1), json!(3)]);
}

/// A relay that runs as somebody without rights, in a folder that is his own.
pub fn without_rights() -> Bare {
    let nobody = user("nobody");
    let relay = Bare::new();
    if is_root() {
        give_to(&relay.folder().join("cgi-bin"), nobody);
    }
    relay.run_as(nobody)
}

/// Everything that needs the data folder is refused with a reason, for the user and for the log.
#[track_caller]
fn expect_refusals(relay: &Bare) {
    relay.post("action=host", "").expect_error(500);
    relay.post("action=host&hostId=room", "").expect_error(500);
    let reply = relay.get("token=x");
    assert!([401, 500].contains(&reply.status), "{reply:?}");
    assert!(relay.log().contains("data folder"), "the log says where to look: {}", relay.log());
    // A ping keeps nothing; but the settings may be in a folder that cannot be read.
    let reply = relay.post("action=ping", "");
    assert!([200, 500].contains(&reply.status), "{reply:?}");
}

#[track_caller]
fn expect_service(relay: &Bare, id: &str) {
    let host = relay.host(id);
    let client = relay.join(&host.id);
    relay.send(&client, "1").expect(200);
    let mut stream = relay.open(&host.token);
    assert_eq!(stream.body(), json!(1));
}

#[test]
fn a_data_folder_that_cannot_be_made_is_an_error_until_it_can() {
    let relay = without_rights();
    let cgi_bin = relay.folder().join("cgi-bin");
    set_mode(&cgi_bin, 0o555);
    expect_refusals(&relay);
    set_mode(&cgi_bin, 0o755);
    expect_service(&relay, "room");

    let mut relay = without_rights();
    let wanted = relay.folder().join("not/there");
    relay.set("RELAY_DATA_DIR", wanted.to_str().unwrap());
    set_mode(relay.folder().path(), 0o555);
    if is_root() {
        expect_refusals(&relay); // root's folder
    }
    set_mode(relay.folder().path(), 0o755);
}

#[test]
fn a_data_folder_of_somebody_else_is_an_error_until_it_is_given_back() {
    if !is_root() {
        return skip("only root can give a folder to somebody else");
    }
    let relay = without_rights();
    fs::create_dir(relay.data()).unwrap();
    set_mode(&relay.data(), 0o700);
    expect_refusals(&relay);
    give_to(&relay.data(), user("nobody"));
    expect_service(&relay, "room");
}

#[test]
fn a_data_folder_that_cannot_be_written_is_an_error_until_it_can() {
    let relay = without_rights();
    fs::create_dir(relay.data()).unwrap();
    if is_root() {
        give_to(&relay.data(), user("nobody"));
    }
    set_mode(&relay.data(), 0o500);
    expect_refusals(&relay);
    set_mode(&relay.data(), 0o700);
    let host = relay.host("room");
    let client = relay.join("room");
    relay.send(&client, "1").expect(200);

    // Now with something in it.
    let below = everything_below(&relay.data());
    let modes: Vec<_> =
        below.iter().map(|path| (path, if path.is_dir() { (0o500, 0o700) } else { (0o400, 0o600) })).collect();
    for (path, (closed, _)) in &modes {
        set_mode(path, *closed);
    }
    relay.send(&client, "2").expect_error(500);
    relay.post("action=host&hostId=another", "").expect_error(500);
    for (path, (_, open)) in &modes {
        set_mode(path, *open);
    }
    relay.send(&client, "3").expect(200);
    let mut stream = relay.open(&host.token);
    assert_eq!([stream.body(), stream.body()], [json!(1), json!(3)]);
    expect_service(&relay, "another");
}

#[test]
fn a_file_in_place_of_the_data_folder_is_an_error_until_it_is_gone() {
    let relay = Bare::new();
    fs::write(relay.data(), "a file").unwrap();
    expect_refusals(&relay);
    assert_eq!(fs::read(relay.data()).unwrap(), b"a file", "it is not the relay's to remove");
    fs::remove_file(relay.data()).unwrap();
    expect_service(&relay, "room");
}

#[test]
fn a_data_folder_that_disappears_is_made_anew() {
    let relay = Bare::new();
    let (host, stream) = relay.listening_host();
    fs::remove_dir_all(relay.data()).unwrap();
    // Its secret is gone too, so nobody's old token can be trusted.
    relay.send(&host.token, "1").expect_error(401);
    expect_service(&relay, "another");
    stream.hang_up();
    let again = || relay.post(&format!("action=host&hostId={}", host.id), "").status;
    until("the id is free once its stream has ended", LONG, || again() == 200);
}

#[test]
fn settings_that_are_no_text_are_an_error_that_names_their_file() {
    let relay = Bare::new();
    write_settings(&relay.data(), &[("RELAY_PREFIX", "x")], None);
    let file = relay.data().join("settings.conf");
    fs::write(&file, b"RELAY_PREFIX=\xff\xfe\n").unwrap();
    assert!(relay.post("action=host", "").expect_error(500).contains("settings.conf"));
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert!(relay.post("action=host", "").expect_error(500).contains("settings.conf"));
    fs::remove_dir(&file).unwrap();
    expect_service(&relay, "room");
}

#[test]
fn a_broken_secret_is_never_used() {
    let relay = Bare::new();
    let old = relay.host("room").token;
    let file = relay.data().join("secret");
    for garbage in [&b""[..], b"x", b"\0\0\0\0", b"short", b"\n"] {
        fs::write(&file, garbage).unwrap();
        let reason = relay.post("action=host", "").expect_error(500);
        assert!(reason.contains("secret"), "{reason}");
        for secret in
            [String::from_utf8_lossy(garbage).into_owned(), String::from_utf8_lossy(garbage).trim().to_owned()]
        {
            let reply = relay.get(&format!("token={}", token::minted_host("room", &secret)));
            reply.expect_error(500);
        }
    }
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    relay.post("action=host", "").expect_error(500);
    fs::remove_dir(&file).unwrap();
    expect_service(&relay, "another");
    relay.get(&format!("token={old}")).expect_error(401);
}

/// What a refusal may be while something is broken.
const REFUSALS: [u16; 5] = [400, 401, 429, 500, 507];

/// A host or a client that does what its user expects: it listens, and comes back when its stream ends.
struct Party {
    token: String,
    stream: Stream,
    heard: Vec<Value>,
    /// What a host answers its last message with.
    response: String,
}

impl Party {
    fn new(token: String, stream: Stream) -> Self {
        Self { token, stream, heard: Vec::new(), response: String::new() }
    }

    /// Listens until it has heard this message, at most for so long. False when it has not.
    #[track_caller]
    fn hears(&mut self, relay: &Bare, message: &Value, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.heard.last() != Some(message) {
            match self.stream.next_event(deadline.saturating_duration_since(Instant::now())) {
                Item::Event(event) if event.name == "relay_event" => {}
                Item::Event(event) => {
                    if let Some(token) = event.json()["responseToken"].as_str() {
                        token.clone_into(&mut self.response);
                    }
                    self.heard.push(event.body());
                }
                Item::End => {
                    if !self.comes_back(relay) && Instant::now() >= deadline {
                        return false;
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                Item::Nothing | Item::Comment(_) => return false,
            }
        }
        true
    }

    #[track_caller]
    fn comes_back(&mut self, relay: &Bare) -> bool {
        let last = self.stream.last_id.clone();
        match relay.listen(&format!("token={}", self.token), &[("Last-Event-ID", &last)]) {
            Ok(stream) => {
                self.stream = stream;
                self.stream.last_id = last;
                true
            }
            Err(reply) => {
                expect_refusal(reply);
                false
            }
        }
    }
}

/// An error that is said in so many words; its status.
#[track_caller]
fn expect_refusal(reply: Reply) -> u16 {
    let status = reply.status;
    assert!(REFUSALS.contains(&status), "{reply:?}");
    reply.expect_error(status);
    status
}

/// The owner's sweep, which may have something to complain about.
fn sweep(relay: &Bare) {
    relay.command_line(&["sweep"]).output().expect("the program runs");
}

/// A session with everything that a session can have: a host and a client that listen, and a client that only joined,
/// with a message for it.
struct Room {
    id: String,
    host: Party,
    client: Party,
    session: PathBuf,
    /// What the processes of its streams have.
    nodes: Vec<PathBuf>,
}

impl Room {
    fn new(relay: &Bare, id: &str) -> Self {
        let before = node_files(&relay.data());
        let (session, host) = new_record(&relay.data(), "hosts", || relay.host(id));
        let host_stream = relay.open(&host.token);
        let client = relay.listening_client(id);
        relay.join(id);
        relay.send(&host.token, "0").expect(200);
        let mut room = Self {
            id: id.to_owned(),
            host: Party::new(host.token, host_stream),
            client: Party::new(client.token, client.stream),
            session,
            nodes: Vec::new(),
        };
        room.nodes = node_files(&relay.data());
        room.nodes.retain(|node| !before.contains(node));
        assert_eq!(room.client.stream.body(), json!(0));
        assert!(room.talk(relay, 1), "{id:?} works while nothing is broken");
        room
    }

    /// All that it consists of.
    fn files(&self) -> Vec<PathBuf> {
        [files_of(&self.session), self.nodes.clone()].concat()
    }

    /// One message to the host, and its answer. True when both came at the first try. False when one was refused; what
    /// was answered 200 has to come in any case, even if a stream has to be opened again for it.
    #[track_caller]
    fn talk(&mut self, relay: &Bare, number: u64) -> bool {
        for to_host in [true, false] {
            let token = if to_host { &self.client.token } else { &self.host.response };
            let reply = relay.send(token, number.to_string());
            if reply.status != 200 {
                expect_refusal(reply);
                // Whoever has lost the stream meanwhile finds out.
                self.host.hears(relay, &Value::Null, Duration::ZERO);
                self.client.hears(relay, &Value::Null, Duration::ZERO);
                return false;
            }
            let to = if to_host { &mut self.host } else { &mut self.client };
            let heard = to.hears(relay, &json!(number), Duration::from_secs(20));
            assert!(heard, "{number} was answered 200 and did not come: {:?} {}", to.heard, relay.log());
        }
        true
    }

    /// Sends until all is well again; registers and joins anew where a token is refused for good.
    #[track_caller]
    fn gets_well(&mut self, relay: &Bare) {
        let start = Instant::now();
        let mut number = 100;
        let mut in_a_row = 0;
        while in_a_row < 3 {
            assert!(start.elapsed() < LONG, "not well after {LONG:?}; the log: {}", relay.log());
            number += 1;
            if self.talk(relay, number) {
                in_a_row += 1;
                continue;
            }
            in_a_row = 0;
            sweep(relay);
            let reply = relay.post(&format!("action=host&hostId={}", encode(&self.id)), "");
            if reply.status == 200 {
                let token = reply.json()["hostToken"].as_str().unwrap().to_owned();
                self.host = Party::new(token.clone(), relay.open(&token));
            } else {
                expect_refusal(reply);
            }
            // Not with GET: that would take the stream away, where all is well by now.
            let query = format!("token={}", self.client.token);
            if relay.call(&Call { method: "HEAD", query: &query, ..Call::default() }).status == 401 {
                let client = relay.listening_client(&self.id);
                self.client = Party::new(client.token, client.stream);
            }
        }
        // A client that joins now is served like any other.
        let mut client = relay.listening_client(&self.id);
        until("a broadcast reaches everybody", LONG, || {
            sweep(relay); // a client that only joined may be beyond repair, until its time is over
            let reply = relay.send(&self.host.token, r#""all""#);
            match reply.status {
                200 => reply.json()[&client.id] == true,
                _ => expect_refusal(reply) == 0,
            }
        });
        assert_eq!(client.stream.body(), json!("all"));
    }
}

/// Does this to one room for each file that a session consists of. Whatever it is, every answer is clear. All get well:
/// by themselves, unless there is something else in the place of a file now, which its owner has to take away.
fn break_each_file(break_it: impl Fn(&Path)) {
    let kind = |path: &Path| fs::symlink_metadata(path).ok().map(|about| about.file_type());
    let relay = Bare::with(&[("RELAY_SESSION_LIFETIME", "2"), ("RELAY_KEEP_ALIVE", "0.5")]);
    let count = Room::new(&relay, "model").files().len();
    assert!(count >= 8, "the record, the members, two logs, and two of each process that listens");
    for number in 0..count {
        // Some have random names, so a file is known by its place in the sorted list.
        let mut room = Room::new(&relay, &format!("room {number}"));
        let path = room.files().remove(number);
        eprintln!("broken: {}", path.display());
        let was = kind(&path);
        break_it(&path);
        if kind(&path).is_some_and(|kind| Some(kind) != was) {
            for number in 0..5 {
                room.talk(&relay, 50 + number);
            }
            if kind(&path) != was {
                remove(&path);
            }
        }
        room.gets_well(&relay);
    }
}

pub fn remove(path: &Path) {
    let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

#[test]
fn a_file_removed_under_a_running_stream_does_no_lasting_harm() {
    break_each_file(remove);
}

/// Writes garbage into a file; where there is a FIFO or a folder, puts a file in its place.
pub fn overwrite(path: &Path, garbage: &[u8]) {
    if path.is_file() {
        return fs::write(path, garbage).unwrap();
    }
    // A running stream may have made it anew before the file is there; then there is nothing to suffer from.
    remove(path);
    let file = fs::File::options().write(true).create_new(true).open(path);
    if let Ok(mut file) = file {
        file.write_all(garbage).unwrap();
    }
}

#[test]
fn an_emptied_file_does_no_lasting_harm() {
    break_each_file(|path| overwrite(path, b""));
}

#[test]
fn garbage_in_a_file_does_no_lasting_harm() {
    let mut random = crate::endurance::Random::new(7);
    let noise: Vec<u8> = (0..5000).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
    break_each_file(|path| overwrite(path, &noise));
}

#[test]
fn json_of_another_shape_in_a_file_does_no_lasting_harm() {
    break_each_file(|path| overwrite(path, br#"{"id":-1,"x":[null,{"y":1e999}]}"#));
}

#[test]
fn half_a_file_does_no_lasting_harm() {
    break_each_file(|path| {
        let whole = if path.is_file() { fs::read(path).unwrap() } else { Vec::new() };
        overwrite(path, &whole[..whole.len() / 2]);
    });
}

#[test]
fn a_folder_in_place_of_a_file_does_no_lasting_harm() {
    break_each_file(|path| {
        remove(path);
        let _ = fs::create_dir(path); // a running stream may have made the file anew already
    });
}

/// A process of the relay that is stopped while it holds a lock (by a debugger, a frozen container) is not everybody's end.
#[test]
fn a_lock_that_nobody_lets_go_of_is_not_waited_for_forever() {
    let relay = Bare::new();
    let host = relay.host("");
    let other = relay.host("");
    let is_its =
        |path: &PathBuf| fs::read_to_string(path).is_ok_and(|record| record.contains(&format!("\"{}\"", host.id)));
    let session = relay.sessions().into_iter().find(is_its).expect("the host's session");
    let held = fs::File::open(session).unwrap();
    held.lock().unwrap();
    let begin = Instant::now();
    let reply = relay.call(&Call { query: &format!("action=join&hostId={}", host.id), ..Call::default() });
    assert!(reply.header("retry-after").is_some(), "{reply:?}");
    reply.expect_error(503);
    assert!(begin.elapsed() < LONG, "{:?}", begin.elapsed());
    relay.join(&other.id);
    held.unlock().unwrap();
    relay.join(&host.id);
}

/// Has the program that `command` runs through `sh` begin with so few file descriptors. No script: one that this process has
/// just written cannot be run while another thread's child has it open.
fn with_descriptors(relay: &Bare, command: &mut Command, descriptors: u32) {
    command.arg("-c").arg(format!("ulimit -S -n {descriptors}; exec \"$0\" \"$@\"")).arg(relay.program());
}

/// A request whose process has so few.
fn limited(relay: &Bare, call: &Call, descriptors: u32) -> Command {
    let mut command = relay.request_of(Path::new("sh"), call);
    with_descriptors(relay, &mut command, descriptors);
    command
}

/// A session of two parties with a pipe each way.
struct Two<'a> {
    relay: &'a Bare,
    path: String,
    token: String,
}

impl<'a> Two<'a> {
    fn new(relay: &'a Bare) -> Self {
        let made = relay.call(&Call { path_info: "/cama/session", ..Call::default() }).expect(201);
        let location = made.header("location").unwrap();
        let path = location[location.find("/cama/").unwrap()..].to_owned();
        Self { relay, path, token: made.header("token").unwrap().to_owned() }
    }

    fn with<T>(&self, method: &str, body: &[u8], call: impl FnOnce(&Call) -> T) -> T {
        let headers = [("X-Timeout", "60"), ("Token", &*self.token)];
        // The host receives, and the guest sends.
        let headers = if method == "GET" { &headers[..] } else { &headers[..1] };
        call(&Call { method, path_info: &self.path, headers, body, ..Call::default() })
    }

    /// Whether somebody waits who has a file with such a name.
    fn waits(&self, name: &str) -> bool {
        let below = everything_below(&self.relay.data().join("pipes"));
        let names = below.iter().filter_map(|path| path.strip_prefix(self.relay.data()).ok()?.file_name()?.to_str());
        names.into_iter().any(|found| found.starts_with(name))
    }
}

/// Who cannot look whether somebody waits has not seen that nobody does.
#[test]
fn who_has_no_descriptors_left_takes_nobody_for_gone() {
    let relay = Bare::new();
    let (receiving, sending) = (Two::new(&relay), Two::new(&relay));
    let receiver = receiving.with("GET", b"", |call| relay.start(call));
    let sender = sending.with("POST", b"bye", |call| relay.start(call));
    until("both wait", LONG, || receiving.waits("receiver") && sending.waits("sender-"));

    let mut refused = 0;
    for descriptors in 4..12 {
        let reply = receiving.with("GET", b"", |call| relay.run(&mut limited(&relay, call, descriptors), b""));
        assert!([409, 503].contains(&reply.status), "{descriptors}: {reply:?}");
        refused += u32::from(reply.status == 503);
        // For the sweep only those who wait keep the sessions. It may have something to complain about, too.
        let mut sweep = Command::new("sh");
        with_descriptors(&relay, &mut sweep, descriptors);
        let known = relay.command_line(&[]);
        sweep.arg("sweep").env_clear().envs(known.get_envs().filter_map(|(key, value)| Some((key, value?))));
        sweep.env("RELAY_PIPE_LIFETIME", "0.001").output().expect("sh runs");
        assert!(receiving.waits("receiver"), "{descriptors}: the living receiver's files are gone");
        assert!(sending.waits("sender-"), "{descriptors}: the living sender's files are gone");
    }
    assert!(refused > 0, "no limit was low enough");
    let sent = receiving.with("POST", b"hello", |call| relay.call(call)).expect(200);
    assert_eq!(sent.header("x-bytes-delivered"), Some("5"));
    let (heard, status) = finish(receiver);
    assert_eq!(relay.reply(&heard, status).expect(200).body, "hello");
    assert_eq!(sending.with("GET", b"", |call| relay.call(call)).expect(200).body, "bye");
    let (heard, status) = finish(sender);
    relay.reply(&heard, status).expect(200);
}

/// How often a process has gone to sleep.
fn sleeps(pid: rustix::process::Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).expect("it runs");
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count.expect("Linux counts that").trim().parse().unwrap()
}

/// How many FIFOs there are on which streams sleep.
fn fifos(relay: &Bare) -> usize {
    crate::place::fifos(&relay.data()).len()
}

/// A look each 20 ms, as for a second after it began, would be a hundred.
#[track_caller]
fn sleeps_well(stream: &Stream) {
    std::thread::sleep(Duration::from_millis(1200));
    let before = sleeps(stream.pid());
    std::thread::sleep(Duration::from_secs(2));
    let slept = sleeps(stream.pid()) - before;
    assert!(slept < 40, "it has looked {slept} times in 2 s, with a FIFO");
}

#[test]
fn a_stream_with_few_descriptors_is_refused_or_is_woken_as_soon_as_it_can_be() {
    use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
    let relay = Bare::new();
    let (mut refused, mut begun) = (0, 0);
    for descriptors in 4..16 {
        let (host, before) = (relay.host(""), fifos(&relay));
        let query = format!("token={}", host.token);
        let call = Call { method: "GET", query: &query, ..Call::default() };
        let started = limited(&relay, &call, descriptors).spawn().expect("sh runs");
        let mut stream = match Stream::from_process(started) {
            Ok(stream) => stream,
            Err(reply) => {
                reply.expect_error(503);
                refused += 1;
                continue;
            }
        };
        stream.expect_comment("Connected.");
        begun += 1;
        let enough = Rlimit { current: Some(64), ..getrlimit(Resource::Nofile) };
        prlimit(Some(stream.pid()), Resource::Nofile, enough).expect("it is this user's process");
        until("the stream has a FIFO", LONG, || fifos(&relay) > before);
        sleeps_well(&stream);
        relay.send(&relay.join(&host.id), "1").expect(200);
        assert_eq!(stream.body(), json!(1));
    }
    assert!(refused > 0 && begun > 0, "{refused} were refused, {begun} began");
}

/// A signal that is caught, and of which nobody hears, ends nothing.
#[test]
fn a_stream_with_few_descriptors_ends_when_the_web_server_wants_it() {
    let relay = Bare::new();
    let mut begun = 0;
    for descriptors in 4..16 {
        let host = relay.host("");
        let query = format!("token={}", host.token);
        let call = Call { method: "GET", query: &query, ..Call::default() };
        let started = limited(&relay, &call, descriptors).spawn().expect("sh runs");
        let Ok(mut stream) = Stream::from_process(started) else { continue };
        stream.expect_comment("Connected.");
        begun += 1;
        kill(stream.pid(), rustix::process::Signal::TERM);
        stream.expect_end();
    }
    assert!(begun > 5, "{begun}");
}

#[test]
fn a_stream_whose_disk_had_no_room_for_its_fifo_makes_it_later() {
    let mut relay = Bare::new();
    let Some(disk) = Disk::under(&mut relay, "4m") else { return };
    let bus = Call { method: "GET", path_info: "/bus/room", ..Call::default() };
    let user = relay.call(&bus).expect(200).json()["user"].to_string();
    let listen = || relay.listen_at("/bus/room", "", &[("Accept", "text/event-stream")]).expect("a stream");
    // With all that a bus ever has.
    listen().hang_up();
    until("its FIFO is gone", LONG, || fifos(&relay) == 0);
    relay
        .call(&Call { path_info: "/bus/room", query: &format!("user={user}"), body: b"0", ..Call::default() })
        .expect(200);

    let files = rustix::fs::statvfs(&disk.0).unwrap();
    // For one more: the lock by which others know that the stream is there.
    disk.remount(&format!("nr_inodes={}", files.f_files - files.f_ffree + 1));
    let mut stream = listen();
    stream.expect_comment("Connected.");
    assert_eq!(fifos(&relay), 0);
    relay
        .call(&Call { path_info: "/bus/room", query: &format!("user={user}"), body: b"1", ..Call::default() })
        .expect(200);
    assert_eq!(stream.event().json()["data"], json!(1));
    disk.remount("nr_inodes=1000");
    until("the stream has a FIFO", LONG, || fifos(&relay) == 1);
    sleeps_well(&stream);
    relay
        .call(&Call { path_info: "/bus/room", query: &format!("user={user}"), body: b"2", ..Call::default() })
        .expect(200);
    assert_eq!(stream.event().json()["data"], json!(2));
}
