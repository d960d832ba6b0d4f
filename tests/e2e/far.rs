//! The far end of PTTH, as a relay sees it: the test plays the relay, and the target of `--forward`.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, UNIX_EPOCH};

use rustix::process::{Pid, Signal};
use uhst_relay::ptth::{Fields, HEAD_FIELD, Method, RequestHead, ResponseHead, Tripcode, Waiting, encode_list};

use crate::bare::Bare;
use crate::place::{Folder, LONG, give_to, is_root, kill, settled_log, skip, until, web_user};
use crate::serve::program;

const MOUNT: &str = "/cgi-bin/relay.cgi";
const KEY: &str = "TheKeyOfThisTest";

/// An answer that is coming in.
struct Incoming {
    head: ResponseHead,
    key: Option<String>,
    length: Option<u64>,
    pieces: Receiver<Vec<u8>>,
}

impl Incoming {
    fn body(&self) -> Vec<u8> {
        self.pieces.iter().flatten().collect()
    }

    fn text(&self) -> String {
        String::from_utf8(self.body()).unwrap()
    }

    fn status(&self) -> u16 {
        self.head.status.code()
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.head.fields.get(name)
    }

    #[track_caller]
    fn expect(self, status: u16) -> Self {
        assert_eq!(self.status(), status, "{:?}", self.head);
        self
    }
}

/// What the connections of a relay share.
#[derive(Default)]
struct Shared {
    waiting: Mutex<VecDeque<Waiting>>,
    arrived: Condvar,
    answers: Mutex<HashMap<String, Sender<Incoming>>>,
    /// What a question is answered with, instead of requests.
    refusal: AtomicU16,
    /// The longest head of an answer that it takes; 0 for any. Others are refused with 431.
    longest_head: AtomicUsize,
    refused: AtomicUsize,
    /// Whether it keeps one listener, as `ptth_relay` 2.0.0 does: one that comes pushes out the one before with a 500.
    keeps_one: AtomicBool,
    pushed_out: AtomicUsize,
    /// How many questions have come, and how many wait now.
    questions: AtomicUsize,
    listeners: AtomicUsize,
    next: AtomicU32,
}

struct FakeRelay {
    url: String,
    shared: Arc<Shared>,
}

impl FakeRelay {
    fn new() -> Self {
        Self::at(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn at(listener: TcpListener) -> Self {
        let shared = Arc::new(Shared::default());
        let url = format!("http://{}{MOUNT}", listener.local_addr().unwrap());
        let relay = Self { url, shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || shared.talk(socket));
            }
        });
        relay
    }

    /// Hands on a request, and says what its answer will come to.
    fn begin(&self, method: Method, uri: &str, fields: &[(&str, &str)]) -> Receiver<Incoming> {
        let id = format!("id/{}", self.shared.next.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = channel();
        self.shared.answers.lock().unwrap().insert(id.clone(), sender);
        let mut all = Fields::default();
        for (name, value) in [("host", "relay.example"), ("accept", "*/*")].iter().chain(fields) {
            all.add(name, value.as_bytes()).unwrap();
        }
        let head = RequestHead { method, uri: uri.to_owned(), fields: all };
        self.shared.waiting.lock().unwrap().push_back(Waiting { id, head });
        self.shared.arrived.notify_all();
        receiver
    }

    #[track_caller]
    fn ask(&self, method: Method, uri: &str, fields: &[(&str, &str)]) -> Incoming {
        let incoming = self.begin(method, uri, fields);
        let incoming = incoming.recv_timeout(LONG).unwrap_or_else(|error| panic!("no answer for {uri}: {error}"));
        assert_eq!(incoming.key.as_deref(), Some(KEY));
        incoming
    }

    #[track_caller]
    fn get(&self, uri: &str) -> Incoming {
        self.ask(Method::Get, uri, &[])
    }
}

/// The first line of a request, and its header fields by lower-case name.
type Head = (String, HashMap<String, String>);

/// `None` at the end of the connection.
fn read_head(reader: &mut BufReader<TcpStream>) -> Option<Head> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let fields = lines[1..].iter().filter_map(|line| line.split_once(": "));
    Some((lines[0].clone(), fields.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect()))
}

impl Shared {
    fn talk(&self, socket: TcpStream) {
        let mut answer = socket.try_clone().unwrap();
        let mut reader = BufReader::new(socket);
        while let Some((line, fields)) = read_head(&mut reader) {
            let reply = if line == format!("GET {MOUNT}/7ZSFUKGV/http_listen/n HTTP/1.1") {
                match self.refusal.load(Ordering::Relaxed) {
                    0 => self.listen(),
                    status => format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n").into_bytes(),
                }
            } else {
                let start = format!("POST {MOUNT}/7ZSFUKGV/http_response/");
                let id = line.strip_prefix(&start).and_then(|rest| rest.strip_suffix(" HTTP/1.1"));
                let id = id.unwrap_or_else(|| panic!("an unexpected request: {line}")).replace("%2F", "/");
                let longest = self.longest_head.load(Ordering::Relaxed);
                if longest > 0 && fields[&HEAD_FIELD.to_ascii_lowercase()].len() > longest {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    let _ = answer.write_all(b"HTTP/1.1 431 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                    return;
                }
                let (sender, pieces) = sync_channel(0);
                let head = ResponseHead::decode(&fields[&HEAD_FIELD.to_ascii_lowercase()]).unwrap();
                let length = fields.get("content-length").map(|length| length.parse().unwrap());
                assert_eq!(length.is_none(), fields.get("transfer-encoding").is_some_and(|coding| coding == "chunked"));
                let incoming = Incoming { head, key: fields.get("x-apikey").cloned(), length, pieces };
                if let Some(waiting) = self.answers.lock().unwrap().remove(&id) {
                    let _ = waiting.send(incoming);
                }
                // A client that is gone ends the connection.
                if receive(&mut reader, length, &sender).is_none() {
                    return;
                }
                b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec()
            };
            if answer.write_all(&reply).is_err() {
                return;
            }
        }
    }

    fn listen(&self) -> Vec<u8> {
        let waiting = self.waiting.lock().unwrap();
        let own = self.questions.fetch_add(1, Ordering::Relaxed) + 1;
        let is_pushed_out = || self.keeps_one.load(Ordering::Relaxed) && self.questions.load(Ordering::Relaxed) > own;
        self.arrived.notify_all();
        self.listeners.fetch_add(1, Ordering::Relaxed);
        let waits = |list: &mut VecDeque<_>| list.is_empty() && !is_pushed_out();
        let (mut waiting, _) = self.arrived.wait_timeout_while(waiting, LONG / 30, waits).unwrap();
        self.listeners.fetch_sub(1, Ordering::Relaxed);
        if is_pushed_out() {
            self.pushed_out.fetch_add(1, Ordering::Relaxed);
            return b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n".to_vec();
        }
        if waiting.is_empty() {
            return b"HTTP/1.1 204 No Content\r\n\r\n".to_vec();
        }
        let list = encode_list(&waiting.drain(..).collect::<Vec<_>>());
        let mut reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", list.len()).into_bytes();
        reply.extend(list);
        reply
    }
}

/// Passes a body on, piece by piece as they are taken. `None` when it is cut short, or nobody wants it.
fn receive(reader: &mut BufReader<TcpStream>, length: Option<u64>, sender: &SyncSender<Vec<u8>>) -> Option<()> {
    let mut pass = |mut left: u64| {
        let mut buffer = vec![0; 64 * 1024];
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap());
            let read = reader.read(&mut buffer[..most]).ok().filter(|read| *read > 0)?;
            sender.send(buffer[..read].to_vec()).ok()?;
            left -= read as u64;
        }
        Some(())
    };
    if let Some(length) = length {
        return pass(length);
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let size = u64::from_str_radix(line.trim_end(), 16).ok()?;
        let mut piece = vec![0; usize::try_from(size).unwrap() + 2];
        reader.read_exact(&mut piece).ok()?;
        assert!(piece.ends_with(b"\r\n"));
        piece.truncate(piece.len() - 2);
        if size == 0 {
            return Some(());
        }
        sender.send(piece).ok()?;
    }
}

/// A running far end, with a folder of its own.
struct Far {
    folder: Folder,
    process: Child,
}

impl Far {
    /// Gives `folder/root`.
    fn of_files(relay: &FakeRelay, folder: Folder) -> Self {
        let root = folder.join("root");
        Self::start(&relay.url, folder, &["--root", root.to_str().unwrap()])
    }

    fn start(relay: &str, folder: Folder, options: &[&str]) -> Self {
        let mut command = program(&["ptth", "serve", "--relay", relay, "--name", "n"]);
        let log = File::create(folder.join("far.log")).unwrap();
        let process = command.args(options).env("PTTH_KEY", KEY).stderr(log).stdout(Stdio::null()).spawn().unwrap();
        Self { folder, process }
    }

    fn log(&self) -> String {
        settled_log(&self.folder.join("far.log"))
    }

    /// The exit code; it must end by itself.
    #[track_caller]
    fn ends(&mut self) -> Option<i32> {
        let mut status = None;
        until("the far end ends", LONG, || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let log = self.log();
        if std::thread::panicking() {
            eprintln!("--- the far end's log\n{log}");
        } else {
            assert!(!log.contains("panicked"), "{log}");
            assert!(!log.contains(KEY), "the key is in the log: {log}");
        }
    }
}

/// A folder with an empty folder `root` in it.
fn folder() -> Folder {
    let folder = Folder::new();
    fs::create_dir(folder.join("root")).unwrap();
    folder
}

#[test]
fn a_file_arrives_whole_in_part_or_not_again() {
    let folder = folder();
    fs::write(folder.join("root/a b.txt"), "0123456789").unwrap();
    let relay = FakeRelay::new();
    let _far = Far::of_files(&relay, folder);

    let whole = relay.get("/a%20b.txt?x=/").expect(200);
    assert_eq!(whole.field("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!((whole.field("content-length"), whole.length), (Some("10"), Some(10)));
    assert_eq!(whole.field("accept-ranges"), Some("bytes"));
    let (tag, date) = (whole.field("etag").unwrap().to_owned(), whole.field("last-modified").unwrap().to_owned());
    assert_eq!(whole.text(), "0123456789");

    let head = relay.ask(Method::Head, "/a%20b.txt", &[]).expect(200);
    assert_eq!((head.field("content-length"), head.length), (Some("10"), Some(0)));
    assert_eq!(head.text(), "");

    let with = |name: &str, value: &str| relay.ask(Method::Get, "/a%20b.txt", &[(name, value)]);
    let part = with("range", "bytes=2-4").expect(206);
    assert_eq!(part.field("content-range"), Some("bytes 2-4/10"));
    assert_eq!(part.text(), "234");
    assert_eq!(with("range", "bytes=-2").expect(206).text(), "89");
    let outside = with("range", "bytes=10-").expect(416);
    assert_eq!(outside.field("content-range"), Some("bytes */10"));
    assert_eq!(with("range", "bytes=0-1,4-5").expect(200).text(), "0123456789");

    let same = with("if-none-match", &format!("\"x\", W/{tag}")).expect(304);
    assert_eq!((same.field("etag"), same.length), (Some(tag.as_str()), Some(0)));
    with("if-none-match", "*").expect(304);
    with("if-modified-since", &date).expect(304);
    assert_eq!(with("if-none-match", "\"x\"").expect(200).text(), "0123456789");
    assert_eq!(with("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT").expect(200).text(), "0123456789");
    let both = |known: &str| relay.ask(Method::Get, "/a%20b.txt", &[("range", "bytes=1-1"), ("if-range", known)]);
    assert_eq!(both(&tag).expect(206).text(), "1");
    assert_eq!(both("\"older\"").expect(200).text(), "0123456789", "no part of another version");
    assert_eq!(relay.ask(Method::Post, "/a%20b.txt", &[]).expect(405).field("allow"), Some("GET, HEAD, OPTIONS"));
    assert_eq!(with("x-ptth-method", "OPTIONS").expect(204).field("allow"), Some("GET, HEAD, OPTIONS"));
}

/// A folder in the kernel's memory, while the test runs.
struct InMemory(PathBuf);

impl Drop for InMemory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_file_without_length_or_date_arrives() {
    let folder = folder();
    let relay = FakeRelay::new();
    let before_1970 = UNIX_EPOCH - Duration::from_secs(1);
    let after_9999 = UNIX_EPOCH + Duration::from_secs(253_402_300_800);
    // Few file systems know that time. The kernel's own in memory does.
    let in_memory = InMemory(Path::new("/dev/shm").join(format!("uhst-relay-e2e-{}", std::process::id())));
    let root = if fs::create_dir(&in_memory.0).is_ok() { in_memory.0.clone() } else { folder.join("root") };
    fs::write(root.join("empty"), "").unwrap();
    let is_known = [("old", before_1970), ("late", after_9999)].map(|(name, time)| {
        let file = File::create(root.join(name)).unwrap();
        (&file).write_all(b"0123456789").unwrap();
        file.set_modified(time).is_ok() && file.metadata().unwrap().modified().unwrap() == time
    });
    let far = Far::start(&relay.url, folder, &["--root", root.to_str().unwrap()]);
    let _ = relay.get("/empty").expect(200).text();
    for name in ["/old", "/late"] {
        let answer = relay.get(name).expect(200);
        if is_known == [true, true] {
            assert_eq!(answer.field("last-modified"), None, "HTTP has no such date");
        }
        let tag = answer.field("etag").unwrap().to_owned();
        assert_eq!(answer.text(), "0123456789");
        let with = |field: &str, value: &str| relay.ask(Method::Get, name, &[("range", "bytes=1-2"), (field, value)]);
        assert_eq!(with("if-range", &tag).expect(206).text(), "12");
        let epoch = "Thu, 01 Jan 1970 00:00:00 GMT";
        assert_eq!(with("if-range", epoch).expect(200).text(), "0123456789", "it is not of that second");
        assert_eq!(with("if-modified-since", epoch).expect(206).text(), "12");
        with("if-none-match", &tag).expect(304);
    }
    let of_empty = |range: &str| relay.ask(Method::Get, "/empty", &[("range", range)]);
    assert_eq!(of_empty("bytes=-1").expect(200).text(), "", "its last byte is all of it");
    assert_eq!(of_empty("bytes=0-").expect(416).field("content-range"), Some("bytes */0"));
    assert_eq!(far.log().lines().count(), 1, "{}", far.log());
    if is_known != [true, true] {
        skip("no file system here knows a time before 1970 and one after 9999");
    }
}

#[test]
fn nothing_outside_the_folder_can_be_had() {
    let folder = folder();
    fs::write(folder.join("secret.txt"), "secret").unwrap();
    fs::create_dir(folder.join("root/sub")).unwrap();
    fs::write(folder.join("root/sub/open.txt"), "open").unwrap();
    fs::write(folder.join("root/.hidden"), "secret").unwrap();
    symlink("../secret.txt", folder.join("root/out.txt")).unwrap();
    symlink(folder.join("secret.txt"), folder.join("root/absolute.txt")).unwrap();
    symlink("..", folder.join("root/up")).unwrap();
    symlink("sub/open.txt", folder.join("root/in.txt")).unwrap();
    fifo(&folder.join("root/fifo"));
    fs::create_dir(folder.join("root/.git")).unwrap();
    fs::write(folder.join("root/.git/config"), "secret").unwrap();
    symlink(".git", folder.join("root/togit")).unwrap();
    symlink("togit/config", folder.join("root/toconfig")).unwrap();
    symlink("nowhere", folder.join("root/dangling")).unwrap();
    fs::write(folder.join("root").join(OsStr::from_bytes(b"\xe4.txt")), "secret").unwrap();
    let relay = FakeRelay::new();
    let _far = Far::of_files(&relay, folder);
    for uri in [
        "/togit/config",
        "/togit/",
        "/togit",
        "/toconfig",
        "/dangling",
        "/%e4.txt",
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/sub/../../secret.txt",
        "/sub/..%2f..%2fsecret.txt",
        "/out.txt",
        "/absolute.txt",
        "/up/secret.txt",
        "/up/",
        "/.hidden",
        "/%2Ehidden",
        "/fifo",
        "/nothing",
        "/sub/open.txt/",
        "/sub/open.txt%00",
        "relative",
        "http://127.0.0.1/sub/open.txt",
    ] {
        let body = relay.get(uri).expect(404).text();
        assert!(!body.contains("secret"), "{uri}: {body}");
    }
    assert_eq!(relay.get("/in.txt").expect(200).text(), "open");
    let list = relay.get("/").expect(200).text();
    let listed: Vec<_> = list.split("href=\"./").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert_eq!(listed, ["in.txt", "sub/"], "what cannot be had is not listed either");
}

/// Also a root whose own path has a hidden part can have links.
#[test]
fn a_folder_that_is_hidden_itself_can_be_given() {
    let folder = folder();
    let root = folder.join("root/.www");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("open.txt"), "open").unwrap();
    symlink("open.txt", root.join("link")).unwrap();
    let relay = FakeRelay::new();
    let _far = Far::start(&relay.url, folder, &["--root", root.to_str().unwrap()]);
    assert_eq!(relay.get("/link").expect(200).text(), "open");
}

fn fifo(path: &Path) {
    rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::RUSR).unwrap();
}

#[test]
fn a_folder_is_its_page_or_a_list() {
    let folder = folder();
    fs::create_dir_all(folder.join("root/a&b/deep")).unwrap();
    fs::write(folder.join("root/a&b/<img src=x>"), "").unwrap();
    fs::write(folder.join("root/a&b/.hidden"), "").unwrap();
    fs::create_dir(folder.join("root/page")).unwrap();
    fs::write(folder.join("root/page/index.html"), "<p>hello").unwrap();
    for other in ["1", "2", "3"] {
        fs::create_dir(folder.join("root").join(other)).unwrap();
        fs::write(folder.join("root").join(other).join("file"), "").unwrap();
    }
    fs::create_dir(folder.join("root/1/index.html")).unwrap();
    fifo(&folder.join("root/2/index.html"));
    symlink("/nowhere", folder.join("root/3/index.html")).unwrap();
    let relay = FakeRelay::new();
    let _far = Far::of_files(&relay, folder);
    for other in ["/1/", "/2/", "/3/"] {
        let list = relay.get(other).expect(200).text();
        assert!(list.contains("<a href=\"./file\">file</a>"), "{other} has no page: {list}");
    }

    assert_eq!(relay.get("/page?q=1").expect(307).field("location"), Some("./page/?q=1"));
    assert_eq!(relay.get("/a%26b").expect(307).field("location"), Some("./a%26b/"));
    let page = relay.get("/page/").expect(200);
    assert_eq!(page.field("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(page.text(), "<p>hello");
    let list = relay.get("/a%26b/").expect(200).text();
    assert!(list.contains("<h1>/a&amp;b/</h1>"), "{list}");
    assert!(list.contains("<a href=\"./deep/\">deep/</a>") && list.contains("<a href=\"../\">"), "{list}");
    assert!(list.contains("<a href=\"./%3Cimg%20src%3Dx%3E\">&lt;img src=x&gt;</a>"), "{list}");
    assert!(!list.contains("<img") && !list.contains("hidden"), "{list}");
    assert!(!relay.get("/").expect(200).text().contains("../"), "there is nothing above the root");
}

#[test]
fn a_large_file_needs_no_memory_and_a_slow_client_no_patience() {
    let folder = folder();
    let file = File::create(folder.join("root/large")).unwrap();
    file.set_len(64 << 20).unwrap();
    fs::write(folder.join("root/small"), "small").unwrap();
    let relay = FakeRelay::new();
    let mut far = Far::of_files(&relay, folder);

    // Nobody reads this one for now; the others do not care.
    let slow = relay.get("/large").expect(200);
    let several: Vec<_> = (0..20).map(|_| relay.begin(Method::Get, "/small", &[])).collect();
    for answer in several {
        assert_eq!(answer.recv_timeout(LONG).unwrap().expect(200).text(), "small");
    }
    assert_eq!(slow.length, Some(64 << 20));
    assert_eq!(slow.pieces.iter().map(|piece| piece.len()).sum::<usize>(), 64 << 20);
    let about = fs::read_to_string(format!("/proc/{}/status", far.process.id())).unwrap();
    let peak = about.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB")).unwrap();
    assert!(peak.trim().parse::<u32>().unwrap() < 32 * 1024, "the far end had {peak} kB in memory");

    // A client that leaves takes nobody with him, and one that does not read does not keep the process.
    drop(relay.get("/large"));
    let _stuck = relay.get("/large");
    assert_eq!(relay.get("/small").text(), "small");
    let stopped = Instant::now();
    kill(Pid::from_child(&far.process), Signal::TERM);
    assert_eq!(far.ends(), Some(0));
    assert!(stopped.elapsed() < LONG / 2, "{:?}", stopped.elapsed());
    assert_eq!(far.log().lines().count(), 1, "nothing of this is an error: {}", far.log());
}

#[test]
fn a_file_that_is_cut_while_it_is_sent_ends_at_once() {
    let folder = folder();
    let file = File::create(folder.join("root/log")).unwrap();
    file.set_len(64 << 20).unwrap();
    let relay = FakeRelay::new();
    let far = Far::of_files(&relay, folder);
    let answer = relay.get("/log").expect(200);
    assert_eq!(answer.pieces.recv_timeout(LONG).unwrap()[0], 0, "it has begun");
    file.set_len(1 << 20).unwrap();
    let mut came = 0;
    loop {
        match answer.pieces.recv_timeout(LONG) {
            Ok(piece) => came += piece.len(),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("the rest is waited for, and nobody is told"),
        }
    }
    assert!(came < 64 << 20, "{came}");
    assert_eq!(far.log().lines().count(), 1, "{}", far.log());
}

#[test]
fn a_request_that_cannot_be_taken_does_not_take_the_others_with_it() {
    let relay = FakeRelay::new();
    let names: Vec<_> = (0..300).map(|number| format!("x-{number}")).collect();
    let fields: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
    // All three in one list.
    let before = relay.begin(Method::Get, "/before/", &[]);
    let _too_many = relay.begin(Method::Get, "/", &fields);
    let behind = relay.begin(Method::Get, "/behind/", &[]);
    let far = Far::of_files(&relay, folder());
    for answer in [before, behind] {
        answer.recv_timeout(LONG).expect("an answer").expect(404);
    }
    assert_eq!(far.log().matches("a request cannot be taken. It is larger").count(), 1, "{}", far.log());
}

#[test]
fn a_relay_that_was_away_is_found_again() {
    let folder = folder();
    fs::write(folder.join("root/small"), "small").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let root = folder.join("root");
    let url = format!("http://{address}{MOUNT}/");
    let far = Far::start(&url, folder, &["--root", root.to_str().unwrap(), "--listeners", "3"]);
    until("the far end says that it cannot reach the relay", LONG, || far.log().contains("cannot be reached"));
    let relay = FakeRelay::at(TcpListener::bind(address).unwrap());
    assert_eq!(relay.get("/small").expect(200).text(), "small");
    relay.shared.refusal.store(500, Ordering::Relaxed);
    until("the far end says that the relay is in trouble", LONG, || far.log().contains("status 500"));
    relay.shared.refusal.store(0, Ordering::Relaxed);
    assert_eq!(relay.get("/small").expect(200).text(), "small");
    assert!(far.log().contains("is there again"), "{}", far.log());
    assert_eq!(far.log().matches("cannot be reached").count(), 1, "it is said once: {}", far.log());
    assert!(!far.log().contains("one listener"), "it failed all of them: {}", far.log());
    until("all three ask again", LONG, || relay.shared.listeners.load(Ordering::Relaxed) == 3);
}

#[test]
fn a_relay_that_keeps_one_listener_is_asked_by_one() {
    for listeners in [2, 5] {
        let folder = folder();
        fs::write(folder.join("root/small"), "small").unwrap();
        let relay = FakeRelay::new();
        let shared = &relay.shared;
        shared.keeps_one.store(true, Ordering::Relaxed);
        let root = folder.join("root");
        let far =
            Far::start(&relay.url, folder, &["--root", root.to_str().unwrap(), "--listeners", &listeners.to_string()]);
        let pushed_out = || shared.pushed_out.load(Ordering::Relaxed);
        until("a listener is pushed out", LONG, || pushed_out() > 0);
        let questions = || shared.questions.load(Ordering::Relaxed);
        let (mut pushes, mut since) = (pushed_out(), questions());
        until("no listener is pushed out any more", LONG, || {
            assert_eq!(relay.get("/small").expect(200).text(), "small");
            if pushed_out() > pushes {
                (pushes, since) = (pushed_out(), questions());
            }
            questions() > since + 20 && far.log().contains("one listener")
        });
        // And when nothing happens.
        let since = questions();
        until("the far end asks twice more", LONG, || questions() > since + 2);
        assert_eq!(pushed_out(), pushes, "{}", far.log());
        assert_eq!(far.log().lines().count(), 2, "it is said once, and nothing else: {}", far.log());

        // Another relay takes its place.
        shared.keeps_one.store(false, Ordering::Relaxed);
        shared.refusal.store(503, Ordering::Relaxed);
        until("the far end says that the relay is in trouble", LONG, || far.log().contains("status 503"));
        shared.refusal.store(0, Ordering::Relaxed);
        let asking = || shared.listeners.load(Ordering::Relaxed);
        until("there are as many listeners as before", LONG, || asking() == listeners);
        relay.get("/small").expect(200);
    }
}

#[test]
fn a_key_that_is_refused_ends_the_far_end_with_what_to_do() {
    for (status, hint) in [(401, "uhst-relay ptth add n"), (403, "X-ApiKey"), (301, "not at")] {
        let relay = FakeRelay::new();
        relay.shared.refusal.store(status, Ordering::Relaxed);
        let mut far = Far::of_files(&relay, folder());
        assert_eq!(far.ends(), Some(1));
        assert!(far.log().contains(hint), "{status}: {}", far.log());
    }
}

#[test]
fn the_key_comes_from_a_file_or_the_environment_only() {
    let relay = FakeRelay::new();
    let folder = folder();
    fs::write(folder.join("key"), format!("{KEY}\n")).unwrap();
    let (root, key) = (folder.join("root"), folder.join("key"));
    let options = ["--root", root.to_str().unwrap(), "--key-file", key.to_str().unwrap()];
    let mut command = program(&["ptth", "serve", "--relay", &relay.url, "--name", "n"]);
    let log = File::create(folder.join("far.log")).unwrap();
    let process = command.args(options).stderr(log).spawn().unwrap();
    let _far = Far { folder, process };
    relay.get("/").expect(200);
    let arguments = ["ptth", "serve", "--relay", &relay.url, "--name", "n", "--root", "/"];
    let without = program(&arguments).output().unwrap();
    assert_eq!(without.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&without.stderr).contains("PTTH_KEY"));
    assert_eq!(program(&arguments).args(["--key", KEY]).output().unwrap().status.code(), Some(2));
}

/// A server that answers each request with `answer`, and hands on the heads that it gets.
fn target(answer: fn(&str, &mut TcpStream)) -> (String, Receiver<Head>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, heads) = channel();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let mut out = socket.try_clone().unwrap();
            if let Some(head) = read_head(&mut BufReader::new(socket)) {
                let line = head.0.clone();
                let _ = sender.send(head);
                answer(&line, &mut out);
            }
        }
    });
    (url, heads)
}

#[test]
fn a_web_application_answers_through_the_far_end() {
    let (url, heads) = target(|line, out| {
        let body: &[u8] = if line.starts_with("HEAD") { b"" } else { b"created\0" };
        let head = "HTTP/1.1 201 Created\r\nContent-Length: 8\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\
             Connection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: x\r\nX-Open: \u{e4}\r\nLocation: /app/new\r\n\r\n";
        out.write_all(&[head.as_bytes(), body].concat()).unwrap();
    });
    let relay = FakeRelay::new();
    let _far = Far::start(&relay.url, folder(), &["--forward", &format!("{url}/app/")]);
    let sent = [("cookie", "c=1"), ("connection", "x-hop"), ("x-hop", "1"), ("te", "trailers"), ("x-open", "1")];
    let answer = relay.ask(Method::Get, "/sub/page?q=%20&r", &sent).expect(201);
    let fields: Vec<_> =
        answer.head.fields.iter().map(|(name, value)| (name, String::from_utf8_lossy(value).into_owned())).collect();
    let wanted = [
        ("content-length", "8"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("x-open", "\u{e4}"),
        ("location", "../new"),
    ];
    assert_eq!(fields, wanted.map(|(name, value)| (name, value.to_owned())));
    assert_eq!((answer.length, answer.body()), (Some(8), b"created\0".to_vec()));

    let (line, mut seen) = heads.recv_timeout(LONG).unwrap();
    assert_eq!(line, "GET /app/sub/page?q=%20&r HTTP/1.1");
    assert_eq!(seen.remove("host").as_deref(), url.strip_prefix("http://"));
    let wanted = [("cookie", "c=1"), ("x-open", "1"), ("accept", "*/*")];
    assert_eq!(seen, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())).into());

    let head = relay.ask(Method::Head, "/", &[]).expect(201);
    assert_eq!((head.length, head.field("content-length")), (Some(0), Some("8")));
    assert_eq!(heads.recv_timeout(LONG).unwrap().0, "HEAD /app/ HTTP/1.1");

    for uri in ["/../admin", "/sub/%2e%2e/../admin", "/..%2fadmin", "/..%5cadmin"] {
        relay.get(uri).expect(400);
    }
    assert!(heads.try_recv().is_err(), "nothing but /app is asked for");
    relay.get("/sub?../").expect(201);
}

#[test]
fn whatever_url_of_itself_an_application_names_stays_behind_the_relay() {
    let (url, heads) = target(|_, out| {
        let own = out.local_addr().unwrap();
        let fields = format!(
            "Location: //{own}/app/login\r\nContent-Location: http://{own}/app/a\r\nRefresh: 1; url=/app/b\r\n\
             Link: <https://{own}/app/c>; rel=next, </d>\r\nSet-Cookie: e=1; Path=/app/f\r\nVia: 1.1 cache\r\n"
        );
        out.write_all(format!("HTTP/1.1 302 Found\r\n{fields}Content-Length: 0\r\n\r\n").as_bytes()).unwrap();
    });
    let relay = FakeRelay::new();
    let _far = Far::start(&relay.url, folder(), &["--forward", &format!("{url}/app/")]);
    let sent = [("x-ptth-method", "OPTIONS"), ("via", "1.1 relay"), ("x-forwarded-for", "192.0.2.1")];
    let answer = relay.ask(Method::Get, "/sub/page", &sent).expect(302);
    let wanted = [
        ("location", "../login"),
        ("content-location", "../a"),
        ("refresh", "1; url=../b"),
        ("link", "<../c>; rel=next, </d>"),
        ("set-cookie", "e=1; Path=/f"),
        ("via", "1.1 cache"),
    ];
    for (name, value) in wanted {
        assert_eq!(answer.field(name), Some(value));
    }
    let (line, seen) = heads.recv_timeout(LONG).unwrap();
    assert_eq!(line, "OPTIONS /app/sub/page HTTP/1.1");
    assert_eq!(seen.get("x-ptth-method"), None);
    assert_eq!((seen["via"].as_str(), seen["x-forwarded-for"].as_str()), ("1.1 relay", "192.0.2.1"));
}

#[test]
fn what_an_application_sends_bit_by_bit_arrives_bit_by_bit() {
    let (url, _heads) = target(|_, out| {
        out.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").unwrap();
        // It goes on only once the client has left.
        while out.write_all(b"1\r\n.\r\n").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let relay = FakeRelay::new();
    let far = Far::start(&relay.url, folder(), &["--forward", &url]);
    let answer = relay.get("/events").expect(200);
    assert_eq!((answer.length, answer.field("content-length"), answer.field("transfer-encoding")), (None, None, None));
    let mut text = Vec::new();
    while text.len() < 10 {
        text.extend(answer.pieces.recv_timeout(LONG).unwrap());
    }
    assert_eq!(text[..10], *b"first.....");
    drop(answer);
    assert!(far.log().lines().count() == 1, "{}", far.log());
}

#[test]
fn an_answer_in_chunks_is_as_long_as_its_chunks() {
    let (url, _heads) = target(|_, out| {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n";
        out.write_all(format!("{head}5\r\nwhole\r\n0\r\n\r\n").as_bytes()).unwrap();
    });
    let relay = FakeRelay::new();
    let _far = Far::start(&relay.url, folder(), &["--forward", &url]);
    let answer = relay.get("/").expect(200);
    assert_eq!((answer.length, answer.field("content-length")), (None, None), "the relay would cut it there");
    assert_eq!(answer.text(), "whole");
}

#[test]
fn a_head_that_the_relay_does_not_take_is_a_bad_gateway() {
    let (url, _heads) = target(|line, out| {
        let fields = match line.split(' ').nth(1) {
            Some("/large") => format!("X: {}\r\n", "x".repeat(12_000)),
            Some("/some") => format!("X: {}\r\n", "x".repeat(6_000)),
            _ => String::new(),
        };
        // The body is more than a relay reads that has refused the head.
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n{fields}\r\n");
        let _ = out.write_all(&[head.as_bytes(), "x".repeat(9_000_000).as_bytes()].concat());
    });
    let relay = FakeRelay::new();
    let far = Far::start(&relay.url, folder(), &["--forward", &url]);
    assert_eq!(relay.get("/some").expect(200).body().len(), 9_000_000);
    assert!(relay.get("/large").expect(502).text().contains("too large"), "no relay has to refuse it first");
    relay.shared.longest_head.store(8000, Ordering::Relaxed);
    assert!(relay.get("/some").expect(502).text().contains("too large"));
    assert_eq!(relay.shared.refused.load(Ordering::Relaxed), 1);
    assert_eq!(relay.get("/none").expect(200).body().len(), 9_000_000);
    assert!(far.log().contains("status 431"), "{}", far.log());
}

#[test]
fn an_application_that_is_down_is_a_bad_gateway() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let relay = FakeRelay::new();
    let _far = Far::start(&relay.url, folder(), &["--forward", &url]);
    assert!(relay.get("/").expect(502).text().contains("cannot be reached"));
    relay.get("no-slash").expect(400);
}

#[test]
fn a_server_is_registered_with_a_key_that_is_shown_once() {
    let relay = Bare::new();
    let run = |arguments: &[&str]| {
        let output = relay.command_line(&[&["ptth"], arguments].concat()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = run(&["add", "my-server", "--display", "My <server>", "--listed"]);
    assert_eq!(code, Some(0), "{}", relay.log());
    let key = said.split_once("PTTH_KEY=").unwrap().1.split_once(' ').unwrap().0.to_owned();
    assert!(key.len() >= 32 && said.contains("uhst-relay ptth serve --relay https://"), "{said}");
    let file = relay.data().join("ptth.json");
    let kept = fs::read_to_string(&file).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
    let tripcode = String::from(Tripcode::of(&key));
    let wanted = serde_json::json!({"tripcode": tripcode, "displayName": "My <server>", "listed": true});
    assert_eq!(kept, serde_json::json!({ "my-server": wanted }));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    assert_eq!(run(&["add", "other"]).0, Some(0));
    assert_eq!(run(&["list"]), (Some(0), "my-server\tlisted\tMy <server>\nother\thidden\t\n".into()));
    assert_eq!(run(&["add", "other"]).0, Some(1), "nobody's key is replaced unasked");
    assert_eq!(run(&["remove", "other"]).0, Some(0));
    assert_eq!(run(&["remove", "other"]).0, Some(1));
    assert_eq!(run(&["list"]).1.lines().count(), 1);
    assert_eq!(run(&["add", "../other"]).0, Some(2));

    fs::write(&file, "{\"my-server\": {\"tripcode\": 5}}").unwrap();
    for arguments in [&["list"][..], &["add", "another"], &["remove", "my-server"]] {
        assert_eq!(run(arguments).0, Some(1));
    }
    assert!(relay.log().contains("'ptth.json'") && relay.log().contains("line 1"), "{}", relay.log());
    let check = relay.command_line(&["check"]).output().unwrap();
    assert!(String::from_utf8_lossy(&check.stdout).contains("ptth.json"));
    assert!(!relay.log().contains("panicked") && !relay.log().contains(&key), "{}", relay.log());
}

#[test]
fn what_root_registers_the_web_servers_user_can_read_and_change() {
    if !is_root() {
        return skip("only root can register for another user");
    }
    let relay = Bare::new();
    fs::create_dir(relay.data()).unwrap();
    give_to(&relay.data(), web_user());
    assert!(relay.command_line(&["ptth", "add", "first"]).output().unwrap().status.success(), "{}", relay.log());
    let relay = relay.run_as(web_user());
    assert!(relay.command_line(&["ptth", "add", "second"]).output().unwrap().status.success(), "{}", relay.log());
    let list = relay.command_line(&["ptth", "list"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&list.stdout), "first\thidden\t\nsecond\thidden\t\n");
}
