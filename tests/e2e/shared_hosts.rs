//! What people meet on shared hosts and on servers that somebody else has set up: each symptom is produced on a real
//! server, and the table of `deploy/README.md` must name it in the log's own words.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::json;

use crate::bare::Bare;
use crate::door::Door;
use crate::place::{
    Folder, LONG, User, give_to, have, install_program, is_root, kill, processes_below, repository, set_mode, skip,
    until, user,
};
use crate::relay::{Call, Relay as _, Reply, Talk as _};
use crate::server::free_port;
use crate::stream::Item;

const PAGE: Call = Call { method: "GET", path_info: "", query: "", headers: &[("Accept", "text/html")], body: b"" };

/// That the table "When something is wrong" has a row with these words in it.
#[track_caller]
fn expect_row(words: &[&str]) {
    let table = fs::read_to_string(repository().join("deploy/README.md")).unwrap();
    let rows = table.lines().filter(|line| line.starts_with('|'));
    let has_all = |row: &&str| words.iter().all(|word| row.contains(word));
    assert!(rows.clone().any(|row| has_all(&row)), "no row of deploy/README.md has {words:?}");
}

/// An Apache with the files of `deploy/apache` and some lines more, on a folder that nobody has given to its user.
pub struct Apache {
    root: Folder,
    port: u16,
    process: Child,
}

impl Apache {
    /// `None` where the machine has no Apache, or the test may not be root.
    pub fn start(root: Folder, lines: &str) -> Option<Self> {
        if !is_root() {
            skip("only root may run a web server as another user");
            return None;
        }
        if !have("apache2") {
            skip("apache2 is not installed");
            return None;
        }
        let run = root.join("run");
        fs::create_dir_all(&run).unwrap();
        give_to(&run, user("www-data"));
        for _ in 0..3 {
            let port = free_port();
            for file in ["httpd.conf", "relay.conf"] {
                let text = fs::read_to_string(repository().join("deploy/apache").join(file)).unwrap();
                let text = text.replace("8080", &port.to_string()).replace("/srv/relay", root.path().to_str().unwrap());
                let more = if file == "httpd.conf" { lines } else { "" };
                fs::write(run.join(file), format!("{text}\n{more}\n")).unwrap();
            }
            let log = fs::File::options().create(true).append(true).open(run.join("error.log")).unwrap();
            let mut process = Command::new("setpriv")
                .args(["--pdeathsig", "TERM", "--", "/usr/sbin/apache2", "-D", "FOREGROUND", "-D", "event", "-f"])
                .arg(run.join("httpd.conf"))
                .env_clear()
                .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin")
                .current_dir(root.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .process_group(0)
                .spawn()
                .expect("setpriv runs the server");
            let deadline = Instant::now() + LONG;
            while process.try_wait().unwrap().is_none() && Instant::now() < deadline {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Some(Self { root, port, process });
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = process.kill();
            let _ = process.wait();
        }
        panic!("Apache does not start: {}", fs::read_to_string(run.join("error.log")).unwrap_or_default());
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Where it is, as `http://127.0.0.1:PORT`.
    pub fn origin(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join("cgi-bin").join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.root.join("run/error.log")).unwrap_or_default()
    }

    /// A request to a program of `cgi-bin`, by `curl`.
    fn ask(&self, program: &str, arguments: &[&str]) -> Reply {
        let url = format!("http://127.0.0.1:{}/cgi-bin/{program}", self.port);
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "60", "--noproxy", "*", "--include"])
            .args(arguments)
            .arg(url)
            .output()
            .expect("curl runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {output:?}"));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        let field = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
        Reply { status, headers: head.lines().filter_map(field).collect(), body: body.to_owned() }
    }

    fn post(&self, query: &str) -> Reply {
        self.ask(&format!("relay.cgi{query}"), &["-d", ""])
    }

    fn page(&self) -> Reply {
        self.ask("relay.cgi", &["-H", "Accept: text/html"])
    }
}

impl Drop for Apache {
    fn drop(&mut self) {
        kill(Pid::from_child(&self.process), Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.process.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        for pid in processes_below(self.root.path()) {
            kill(pid, Signal::KILL);
        }
        if std::thread::panicking() {
            eprintln!("--- the server's log\n{}", self.log());
        }
    }
}

/// The customer of a host, who has FTP.
pub fn customer() -> User {
    user("nobody")
}

/// A host's folder: `cgi-bin/relay.cgi`, the customer's.
fn hosted(root: Folder) -> Folder {
    for (name, is_folder) in [("cgi-bin", true), ("cgi-bin/relay.cgi", false)] {
        let path = root.join(name);
        if is_folder {
            fs::create_dir_all(&path).unwrap();
            set_mode(&path, 0o755);
        } else {
            install_program(&path);
        }
        if is_root() {
            give_to(&path, customer());
        }
    }
    root
}

// ---- without suexec: the program runs as the web server's user

#[test]
fn who_may_not_write_is_told_on_a_host_without_suexec() {
    let Some(apache) = Apache::start(hosted(Folder::new()), "") else { return };
    let data = apache.path("data");

    // Nothing may be made beside the program.
    let said = apache.post("?action=ping&timestamp=1").expect_error(500);
    assert!(said.contains("data folder"), "{said}");
    for words in ["runs as `www-data`", "belongs to `nobody`, with permissions 755", "777"] {
        assert!(apache.log().contains(words), "{words}: {}", apache.log());
    }
    let page = apache.page().body;
    for words in [
        "<span>This relay has a problem.</span>",
        "<code>www-data</code>",
        "<code>nobody</code>",
        "permissions 755",
        "777",
    ] {
        assert!(page.contains(words), "{words}: {page}");
    }
    expect_row(&["runs as", "belongs to", "777"]);

    // What used to be advised.
    fs::create_dir(&data).unwrap();
    give_to(&data, customer());
    set_mode(&data, 0o700);
    let settings = data.join("settings.conf");
    fs::write(&settings, "RELAY_PREFIX=berlin\n").unwrap();
    give_to(&settings, customer());
    set_mode(&settings, 0o600);
    for reply in [apache.post("?action=ping"), apache.post("?action=host")] {
        let said = reply.expect_error(500);
        assert!(said.contains("data folder") && !said.contains("settings.conf"), "{said}");
    }
    let page = apache.page().body;
    assert!(page.contains("may not use the data folder") && page.contains("permissions 700"), "{page}");

    // What can be done without root.
    set_mode(&data, 0o777);
    let said = apache.post("?action=host").expect_error(500);
    assert!(said.contains("settings.conf") && said.contains("644"), "{said}");
    set_mode(&settings, 0o644);
    let host = apache.post("?action=host").expect(200).json();
    assert!(host["hostId"].as_str().unwrap().starts_with("berlin-"), "{host}");
    assert_eq!(apache.post("?action=ping&timestamp=1").expect(200).json(), json!({"pong": 1}));
    assert!(apache.page().body.contains("<span>This relay is healthy.</span>"));
    assert!(data.join(".htaccess").is_file() && data.join("index.html").is_file());
    for name in ["secret", "index.html", "settings.conf"] {
        let reply = apache.ask(&format!("data/{name}"), &[]);
        assert!(reply.status == 403, "{name}: {reply:?}");
    }
}

#[test]
fn a_link_is_a_data_folder_too() {
    let Some(apache) = Apache::start(hosted(Folder::new()), "") else { return };
    let kept = apache.root.join("run/kept");
    fs::create_dir(&kept).unwrap();
    give_to(&kept, user("www-data"));
    symlink(&kept, apache.path("data")).unwrap();
    apache.post("?action=ping").expect(200);
    apache.post("?action=host").expect(200);
    assert!(kept.join("secret").is_file() && kept.join(".htaccess").is_file());
    assert!(apache.page().body.contains("<span>This relay is healthy.</span>"));
}

// ---- with suexec: it runs as the customer

/// A folder where suexec allows programs; `None` where there is no suexec.
pub fn suexec_folder() -> Option<Folder> {
    if !is_root() || !Path::new("/usr/lib/apache2/suexec").exists() {
        skip("there is no suexec, or this is not root: Debian has it in apache2-suexec-pristine");
        return None;
    }
    let about = Command::new("/usr/lib/apache2/suexec").arg("-V").output().unwrap();
    let about = String::from_utf8_lossy(&about.stderr).into_owned();
    let root = about.lines().find_map(|line| line.split_once("AP_DOC_ROOT=\"")?.1.strip_suffix('"'));
    let root = root.unwrap_or_else(|| panic!("no AP_DOC_ROOT in {about}"));
    fs::create_dir_all(root).unwrap();
    Some(Folder::below(Path::new(root)))
}

pub const SUEXEC: &str = "LoadModule suexec_module modules/mod_suexec.so\nSuexecUserGroup nobody nogroup\n";

#[test]
fn under_suexec_the_data_folder_is_named_beside_the_program() {
    let Some(folder) = suexec_folder() else { return };
    let elsewhere = folder.join("elsewhere");
    let lines = format!("{SUEXEC}SetEnv RELAY_DATA_DIR {}\n", elsewhere.display());
    let Some(apache) = Apache::start(hosted(folder), &lines) else { return };

    // It runs as the customer, and the first look makes the folder; what the server's configuration says never arrives.
    apache.post("?action=ping").expect(200);
    let owner = |path: &Path| fs::metadata(path).map(|about| about.uid());
    assert_eq!(owner(&apache.path("data")).unwrap(), customer().uid);
    assert!(!elsewhere.exists(), "suexec has let RELAY_DATA_DIR through");
    expect_row(&["`SetEnv` has no effect", "suexec"]);
    // The program of an answered ping may still be sweeping.
    until("it can be removed", LONG, || fs::remove_dir_all(apache.path("data")).is_ok());

    let beside = apache.path("settings.conf");
    let kept = apache.root.join("kept");
    fs::create_dir(&kept).unwrap();
    give_to(&kept, customer());
    fs::write(&beside, format!("RELAY_DATA_DIR={}\n", kept.display())).unwrap();
    apache.post("?action=ping").expect(200);
    apache.post("?action=host").expect(200);
    assert!(kept.join("secret").is_file() && !apache.path("data").exists());

    // A line that could have no effect, or would be on the web, is refused.
    fs::write(kept.join("settings.conf"), "RELAY_DATA_DIR=/elsewhere\n").unwrap();
    set_mode(&kept.join("settings.conf"), 0o644);
    let said = apache.post("?action=host").expect_error(500);
    assert!(said.contains("RELAY_DATA_DIR") && said.contains("beside the program"), "{said}");
    fs::remove_file(kept.join("settings.conf")).unwrap();
    fs::write(&beside, "JWT_SECRET=hidden\n").unwrap();
    let said = apache.post("?action=ping").expect_error(500);
    assert!(said.contains("settings.conf") && !said.contains("hidden"), "{said}");
    fs::remove_file(&beside).unwrap();

    symlink(&kept, apache.path("data")).unwrap();
    apache.post("?action=host").expect(200);
    assert!(apache.page().body.contains("<span>This relay is healthy.</span>"));
}

#[test]
fn what_suexec_refuses_is_in_the_table_with_its_own_words() {
    let Some(folder) = suexec_folder() else { return };
    let Some(apache) = Apache::start(hosted(folder), SUEXEC) else { return };
    apache.post("?action=ping").expect(200);
    let suexec_log = || fs::read("/var/log/apache2/suexec.log").unwrap_or_default();
    let refused = |program: &str, words: &str| {
        let before = suexec_log().len();
        let reply = apache.ask(program, &["-d", ""]);
        assert_eq!(reply.status, 500, "{reply:?}");
        let log = suexec_log();
        let said = String::from_utf8_lossy(&log[before.min(log.len())..]).into_owned();
        assert!(said.contains(words), "{words}: {said}");
        assert!(apache.log().contains("End of script output before headers"), "{}", apache.log());
        expect_row(&["End of script output before headers", "suexec", words]);
    };

    symlink("relay.cgi", apache.path("link.cgi")).unwrap();
    refused("link.cgi", "cannot stat program");
    set_mode(&apache.path("relay.cgi"), 0o775);
    refused("relay.cgi", "file is writable by others");
    set_mode(&apache.path("relay.cgi"), 0o755);
    set_mode(&apache.path(""), 0o777);
    refused("relay.cgi", "directory is writable by others");
    set_mode(&apache.path(""), 0o755);
    give_to(&apache.path("relay.cgi"), user("www-data"));
    refused("relay.cgi", "mismatch with directory");
    give_to(&apache.path("relay.cgi"), customer());
    set_mode(&apache.path("relay.cgi"), 0o644);
    refused("relay.cgi", "file has no execute permission");
    set_mode(&apache.path("relay.cgi"), 0o755);
    apache.post("?action=ping").expect(200);
}

// ---- what an upload, and a filter, do

/// The program as FTP's text mode leaves it: every CR LF has become LF.
fn as_text(program: &Path) {
    let bytes = fs::read(program).unwrap();
    let mut text = Vec::with_capacity(bytes.len());
    for (index, byte) in bytes.iter().enumerate() {
        if *byte != b'\r' || bytes.get(index + 1) != Some(&b'\n') {
            text.push(*byte);
        }
    }
    assert!(text.len() < bytes.len(), "the program has no CR LF in it");
    // Beside it: a program that runs cannot be written.
    let new = program.with_extension("new");
    fs::write(&new, text).unwrap();
    set_mode(&new, 0o755);
    if is_root() {
        give_to(&new, user("www-data"));
    }
    fs::rename(new, program).unwrap();
}

#[test]
fn an_upload_in_text_mode_is_in_the_table_with_the_logs_words() {
    for (door, words) in [(Door::ApacheEvent, "End of script output before headers"), (Door::Lighttpd, "died")] {
        let Some(relay) = door.server(&[]) else { continue };
        as_text(&relay.folder().join("cgi-bin/relay.cgi"));
        let reply = relay.page("/cgi-bin/relay.cgi");
        assert!(reply.status >= 500, "{reply:?}");
        until("the log says it", LONG, || relay.log().contains(words));
        expect_row(&["text mode", words]);
    }
}

#[test]
fn a_firewall_lets_json_through_and_the_table_names_what_it_does_not() {
    const MODULE: &str = "/usr/lib/apache2/modules/mod_security2.so";
    const RULES: &str = "/usr/share/modsecurity-crs/owasp-crs.load";
    if !Path::new(MODULE).exists() || !Path::new(RULES).exists() {
        return skip("there is no ModSecurity with the OWASP rules: libapache2-mod-security2, modsecurity-crs");
    }
    let root = Folder::with_program();
    if is_root() {
        give_to(&root.join("cgi-bin"), user("www-data"));
    }
    let recommended = fs::read_to_string("/etc/modsecurity/modsecurity.conf-recommended").unwrap();
    let rules: String = recommended
        .lines()
        // Debian's whole configuration, switched on, with its files in the test's folder.
        .filter(|line| {
            !["SecRuleEngine", "SecAuditLog ", "SecTmpDir", "SecDataDir"].iter().any(|key| line.starts_with(key))
        })
        .map(|line| line.replace("unicode.mapping", "/etc/modsecurity/unicode.mapping") + "\n")
        .collect();
    let run = root.join("run");
    let lines = format!(
        "LoadModule unique_id_module modules/mod_unique_id.so\nLoadModule security2_module {MODULE}\n{rules}\n\
         SecRuleEngine On\nSecAuditLog {run}/audit.log\nSecTmpDir {run}\nSecDataDir {run}\nInclude {RULES}\n",
        run = run.display()
    );
    let Some(apache) = Apache::start(root, &lines) else { return };
    // By a name: the rules do not like addresses in `Host`.
    let json: &[&str] = &["-H", "Host: relay.example", "-H", "Content-Type: application/json"];
    let ask = |path: &str, more: &[&str]| apache.ask(&format!("relay.cgi{path}"), &[json, more].concat());
    let text =
        |reply: &Reply, name: &str| reply.json()[name].as_str().unwrap_or_else(|| panic!("{reply:?}")).to_owned();

    // JSON passes, both ways, and so do the forms that need only GET and POST.
    let host = ask("?action=host", &["-d", "{}"]).expect(200);
    let joined = ask(&format!("?action=join&hostId={}", text(&host, "hostId")), &["-d", "{}"]).expect(200);
    ask(&format!("?token={}", text(&joined, "clientToken")), &["-d", r#"{"text":"hello"}"#]).expect(200);
    let hello = ask("/bus/room", &[]).expect(200);
    let bus = format!(
        "/bus/room?user={}",
        hello.json()["user"].as_str().map_or_else(|| hello.json()["user"].to_string(), str::to_owned)
    );
    ask(&bus, &["-d", r#"{"text":"hello"}"#]).expect(200);
    let pipe = ask("/cama/session", &["-d", "{}"]).expect(201);
    let session = pipe.header("location").unwrap().rsplit('/').next().unwrap().to_owned();
    let token = pipe.header("token").unwrap().to_owned();

    // What it refuses, in the log's words.
    let refused = |reply: Reply, words: &str| {
        assert!(reply.status == 403 && !reply.body.starts_with('{'), "{words}: {reply:?}");
        assert!(apache.log().contains(words), "{words}: {}", apache.log());
        expect_row(&["ModSecurity", words]);
    };
    let pipe = format!("relay.cgi/cama/session/{session}");
    let token = format!("Token: {token}");
    refused(
        apache.ask(&pipe, &["-H", "Host: relay.example", "-H", &token, "-X", "DELETE"]),
        "Method is not allowed by policy",
    );
    refused(ask("/cama/session", &["-X", "PUT", "-d", "{}"]), "Method is not allowed by policy");
    let plain = ["-H", "Host: relay.example", "-H", "Content-Type: text/plain", "-d", "hello"];
    refused(apache.ask(&format!("relay.cgi{bus}"), &plain), "Request content type is not allowed by policy");
    refused(ask(&bus, &["-d", r#"{"text":"<script>alert(1)</script>"}"#]), "XSS");

    // And what does the same without being refused.
    let ended = apache.ask(&format!("{pipe}?method=DELETE"), &[json, &["-H", &token, "-d", "{}"]].concat());
    assert_eq!(ended.status, 200, "{ended:?}");
    expect_row(&["ModSecurity", "?method=DELETE"]);
}

// ---- lighttpd

#[test]
fn a_reload_of_lighttpd_keeps_nobody_out_while_a_stream_is_open() {
    // Without the setting lighttpd waits eight seconds for the stream and takes nobody in meanwhile.
    let mut shortest = Duration::MAX;
    for _ in 0..3 {
        let Some(relay) = Door::Lighttpd.server(&[]) else { return };
        let (_host, mut stream) = relay.listening_host();
        // As every client does, it hangs up when the server has; lighttpd waits for that, too.
        let client = std::thread::spawn(move || while stream.next_event(LONG) != Item::End {});
        let pid = fs::read_to_string(relay.folder().join("run/lighttpd.pid")).unwrap();
        kill(Pid::from_raw(pid.trim().parse().unwrap()).unwrap(), Signal::USR1);
        until("it begins", LONG, || relay.log().contains("graceful shutdown started"));
        let began = Instant::now();
        until("lighttpd answers again", LONG, || relay.answers_soon());
        shortest = shortest.min(began.elapsed());
        client.join().unwrap();
        if shortest < Duration::from_secs(5) {
            break;
        }
    }
    assert!(shortest < Duration::from_secs(7), "nobody was taken in for {shortest:?}");
    expect_row(&["lighttpd", "server.graceful-shutdown-timeout"]);
}

// ---- settings

#[test]
fn what_is_odd_about_settings_is_told_on_the_page_in_the_log_and_by_check() {
    let Some(relay) = Door::Lighttpd.server(&[("RELAY_PREFX", "berlin"), ("JWT_SECRET", "short")]) else { return };
    let data = relay.folder().join("cgi-bin/data");
    fs::write(data.join("settings.conf.txt"), "RELAY_PREFIX=berlin\n").unwrap();
    let told = ["there is no RELAY_PREFX", "JWT_SECRET is shorter than 32 bytes", "settings.conf.txt"];
    let page = relay.call(&PAGE).body;
    assert!(page.contains("<span>This relay works, with a note.</span>"), "{page}");
    for words in told {
        assert!(page.contains(words), "{words}: {page}");
        until("the log says it", LONG, || relay.log().contains(words));
    }
    for kept in ["berlin", "short<", ">short"] {
        assert!(!page.contains(kept), "a value is shown: {page}");
    }
    relay.host("");
    expect_row(&["settings.conf.txt"]);

    let bare = Bare::with(&[("RELAY_PREFX", "berlin"), ("JWT_SECRET", "short")]);
    let check = || String::from_utf8(bare.command_line(&["check"]).output().unwrap().stdout).unwrap();
    assert!(check().contains("The variable RELAY_PREFX has no effect"), "{}", check());
    crate::place::write_settings(&bare.data(), &[("RELAY_PREFX", "berlin")], None);
    fs::write(bare.data().join("Settings.conf"), "").unwrap();
    let said = check();
    for words in ["there is no RELAY_PREFX", "JWT_SECRET is shorter", "`Settings.conf`"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!said.contains("PROBLEM") && !said.contains("berlin"), "{said}");
    // A ping tells the log as well.
    bare.post("action=ping", "").expect(200);
    assert!(bare.log().contains("there is no RELAY_PREFX"), "{}", bare.log());
}

#[test]
fn a_line_of_a_settings_file_that_cannot_have_an_effect_is_refused() {
    for line in ["RELAY_PREFIX: hidden", "RELAY_PREFIX=a\nRELAY_PREFIX=hidden", "RELAY_DATA_DIR=hidden"] {
        let relay = Bare::new();
        relay.host("");
        fs::write(relay.data().join("settings.conf"), line).unwrap();
        let said = relay.post("action=ping", "").expect_error(500);
        assert!(said.contains("settings.conf") && said.contains("line ") && !said.contains("hidden"), "{line}: {said}");
        assert!(relay.log().contains("settings.conf") && !relay.log().contains("hidden"), "{}", relay.log());
    }
}

// ---- the data folder

#[test]
fn a_ping_and_the_page_make_the_data_folder_and_check_does_not() {
    let relay = Bare::new();
    let check = relay.command_line(&["check"]).output().unwrap();
    assert!(check.status.success(), "{check:?}");
    assert!(!relay.data().exists());
    relay.post("action=ping", "").expect(200);
    for name in [".htaccess", "index.html", "version", "hosts"] {
        assert!(relay.data().join(name).exists(), "a ping has made no {name}");
    }
    fs::remove_dir_all(relay.data()).unwrap();
    let page = relay.call(&PAGE).body;
    assert!(page.contains("<span>This relay is healthy.</span>"), "{page}");
    assert!(relay.data().join(".htaccess").is_file());
    fs::remove_dir_all(relay.data()).unwrap();
    fs::write(relay.data(), "a file").unwrap();
    assert!(relay.post("action=ping", "").expect_error(500).contains("data folder"));
}

/// Each visitor used to probe the disk, and one who had to wait too long removed the folder in which another was at work.
#[test]
fn one_who_looks_at_the_disk_is_in_nobodys_way() {
    let relay = Bare::new();
    relay.post("action=host", "").expect(200);
    let probe = relay.data().join("probe");
    fs::create_dir(&probe).unwrap();
    let [lock, written] = crate::place::probe_files(&relay.data());
    let lock = fs::File::create(lock).unwrap();
    fs::write(&written, b"theirs").unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    // As the relay's user, or there would be another problem.
    let page = relay.call(&PAGE).body;
    assert!(!page.contains("<span>This relay has a problem.</span>"), "somebody else who looks is no problem: {page}");
    assert_eq!(fs::read(&written).unwrap(), b"theirs", "whoever is at work is left alone");
    drop(lock);
    let page = relay.call(&PAGE).body;
    assert!(page.contains("<span>This relay is healthy.</span>"), "{page}");
    assert!(!probe.exists(), "what a killed one has left is removed");
    // From now on for a moment nobody looks: a folder in the way is not even seen.
    fs::write(&probe, "in the way").unwrap();
    let age = fs::metadata(relay.data().join("probe.json")).unwrap().modified().unwrap();
    let page = relay.call(&PAGE).body;
    let is_late = age.elapsed().unwrap_or_default() > Duration::from_secs(4);
    assert!(is_late || probe.is_file() && page.contains("<span>This relay is healthy.</span>"), "{page}");
}
