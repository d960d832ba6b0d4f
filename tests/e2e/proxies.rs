//! `serve` behind nginx, Apache and Caddy: each is started with the very block that `deploy/README.md` prints, and passes
//! all five protocols on, below a path of its own.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::json;

use crate::cama::{Scene, hear};
use crate::door::Door;
use crate::place::{Folder, LONG, give_to, have, is_root, kill, repository, skip, until, web_user};
use crate::relay::Talk as _;
use crate::server::free_port;

/// Below which path the blocks have the relay.
pub const MOUNT: &str = "/relay";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    Nginx,
    Apache,
    Caddy,
}

impl Proxy {
    fn program(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Apache => "apache2",
            Self::Caddy => "caddy",
        }
    }

    /// The block, with two changes: where the proxy listens, and where the relay does.
    fn block(self, port: u16, relay: SocketAddr) -> String {
        let readme = fs::read_to_string(repository().join("deploy/README.md")).unwrap();
        let section = readme.split("\n## ").find(|text| text.starts_with("`serve` behind a reverse proxy")).unwrap();
        let is_own = |text: &&str| text.lines().next().unwrap_or_default().eq_ignore_ascii_case(&format!("{self:?}"));
        let own = section.split("\n### ").find(is_own).unwrap_or_else(|| panic!("no heading for {self:?}"));
        let lines = own.lines().skip_while(|line| !line.starts_with("    "));
        let block: Vec<_> = lines.take_while(|line| line.is_empty() || line.starts_with("    ")).collect();
        let mut block = block.join("\n");
        let mut replace = |printed: &str, here: &str| {
            assert_eq!(block.matches(printed).count(), 1, "{printed:?} stands once in {block}");
            block = block.replace(printed, here);
        };
        replace("127.0.0.1:8080", &relay.to_string());
        match self {
            Self::Nginx => replace("listen 80;", &format!("listen 127.0.0.1:{port};")),
            Self::Apache => replace("*:80>", &format!("127.0.0.1:{port}>")),
            Self::Caddy => replace("example.org {", &format!("http://:{port} {{\n        bind 127.0.0.1")),
        }
        block
    }

    /// The rest of a configuration: what an installed proxy has anyway.
    fn configuration(self, folder: &Path, port: u16, block: &str) -> String {
        let here = folder.display();
        match self {
            Self::Nginx => {
                let user = if is_root() { "user www-data;" } else { "" };
                let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
                let paths: String = paths.map(|name| format!("{name}_temp_path {here}/{name};\n")).concat();
                format!(
                    "{user}\ndaemon off;\npid {here}/pid;\nerror_log {here}/error.log;\nworker_rlimit_nofile 4096;\n\
                     events {{ worker_connections 1024; }}\nhttp {{\naccess_log off;\n{paths}\n{block}\n}}\n"
                )
            }
            Self::Apache => {
                let names =
                    ["mpm_event", "authz_core", "alias", "headers", "filter", "deflate", "proxy", "proxy_http", "env"];
                let modules = names.map(|name| format!("LoadModule {name}_module modules/mod_{name}.so\n")).concat();
                format!(
                    "ServerRoot /usr/lib/apache2\nServerName localhost\nListen 127.0.0.1:{port}\nUser www-data\n\
                     Group www-data\nPidFile {here}/pid\nErrorLog {here}/error.log\nDefaultRuntimeDir {here}\n\
                     Mutex file:{here}\n{modules}\nAddOutputFilterByType DEFLATE text/event-stream application/json\n\
                     {block}\n"
                )
            }
            Self::Caddy => format!("{{\nadmin off\nauto_https off\n}}\n{block}\n"),
        }
    }

    fn command(self, folder: &Path, configuration: &Path) -> Command {
        // --pdeathsig: when the test is killed, so is the proxy.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--", self.program()]).env_clear();
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin").env("HOME", folder);
        match self {
            Self::Nginx => command.arg("-e").arg(folder.join("error.log")).arg("-c").arg(configuration),
            Self::Apache => command.args(["-D", "FOREGROUND", "-f"]).arg(configuration),
            Self::Caddy => command.args(["run", "--adapter", "caddyfile", "--config"]).arg(configuration),
        };
        command
    }
}

/// A proxy that runs in front of a relay.
pub struct Front {
    process: Child,
    folder: Folder,
    port: u16,
}

impl Front {
    /// `None` with a word on stderr where it is not installed.
    pub fn start(proxy: Proxy, relay: SocketAddr) -> Option<Self> {
        use std::os::unix::process::CommandExt as _;
        if !have(proxy.program()) {
            skip(&format!("{} is not installed", proxy.program()));
            return None;
        }
        for _ in 0..3 {
            let (folder, port) = (Folder::new(), free_port());
            if is_root() {
                give_to(folder.path(), web_user());
            }
            let configuration = folder.join("configuration");
            let block = proxy.block(port, relay);
            fs::write(&configuration, proxy.configuration(folder.path(), port, &block)).unwrap();
            let log = fs::File::create(folder.join("said.log")).unwrap();
            let mut command = proxy.command(folder.path(), &configuration);
            let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
            let mut front = Self { process: command.spawn().expect("setpriv runs the proxy"), folder, port };
            let mut has_ended = false;
            until("the proxy listens", LONG, || {
                has_ended = front.process.try_wait().unwrap().is_some();
                has_ended || TcpStream::connect(front.address()).is_ok()
            });
            if !has_ended {
                return Some(front);
            }
            // Its port may have been taken.
            eprintln!("{proxy:?} has ended: {}", front.log());
        }
        panic!("{proxy:?} does not start");
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        read("said.log") + &read("error.log")
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.process);
        kill(pid, Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < deadline {
            sleep(Duration::from_millis(10));
        }
        let _ = kill_process_group(pid, Signal::KILL);
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("--- the proxy's log\n{}", self.log());
        }
    }
}

/// Redirects, addresses and the paths of cookies lead back through the proxy.
pub fn what_the_relay_says_of_itself_is_below_the_path(door: Door) {
    let Some(scene) = Scene::new(door, &[]) else { return };
    // A proxy may make a whole URL of a path, with the name that the request has (RFC 9110, 10.2.2).
    let below = |location: &str| match location.strip_prefix("http://") {
        Some(url) => url[url.find('/').unwrap()..].to_owned(),
        None => location.to_owned(),
    };

    let made = scene.call("PUT", "/cama/session", &[], b"").expect(201);
    let location = below(made.header("location"));
    assert!(location.starts_with("/relay/cama/session/"), "{made:?}");
    assert!(made.header("set-cookie").contains(&format!("; Path={location}; ")), "{made:?}");
    let cookie = format!("token=\"{}\"", made.header("token"));
    let gone = scene.call("DELETE", &location[MOUNT.len()..], &[("Cookie", &cookie)], b"").expect(200);
    assert!(gone.header("set-cookie").contains(&format!("; Path={location}; ")), "{gone:?}");

    let data = scene.folder().join("cgi-bin/data");
    let program = scene.folder().join("cgi-bin/relay.cgi");
    let added = Command::new(program).args(["ptth", "add", "shop", "--listed", "--data"]).arg(data).output().unwrap();
    assert!(added.status.success(), "{added:?}");
    let redirect = scene.call("GET", "/frontend/servers/shop", &[], b"");
    assert_eq!(redirect.status, 307, "{redirect:?}");
    assert_eq!(below(redirect.header("location")), "/relay/frontend/servers/shop/", "{redirect:?}");

    // Without its slash.
    let request = "GET /relay HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n";
    let mut socket = scene.connect();
    std::io::Write::write_all(&mut socket, request.as_bytes()).unwrap();
    let redirect = hear(socket);
    assert_eq!(redirect.status, 308, "{redirect:?}");
    assert!(redirect.header("location").ends_with("/relay/"), "{redirect:?}");
}

/// The client's own address counts, and what a client says about itself does not.
pub fn the_relay_knows_who_is_behind_the_proxy(door: Door) {
    let Some(scene) = Scene::new(door, &[]) else { return };
    for forged in ["https", "http"] {
        let made = scene.call("PUT", "/cama/session", &[("X-Forwarded-Proto", forged)], b"").expect(201);
        assert!(!made.header("set-cookie").contains("Secure"), "this is no https: {made:?}");
    }
    let made = scene.call("PUT", "/cama/session", &[("X-Type", "secure")], b"").expect(201);
    let location = made.header("location");
    let path = &location[location.find("/cama/").unwrap()..];
    let cookie = format!("token=\"{}\"", made.header("token"));
    scene.call("PUT", path, &[("Cookie", &cookie), ("X-Peer-Address", "192.0.2.1")], b"").expect(200);
    // A guest from here who says that it comes from there.
    let forged = [("X-Forwarded-For", "192.0.2.1"), ("X-Timeout", "1")];
    scene.call("GET", path, &forged, b"").expect_error(403);
    scene.call("PUT", path, &[("Cookie", &cookie), ("X-Peer-Address", "127.0.0.1")], b"").expect(200);
    scene.call("GET", path, &[("X-Timeout", "1")], b"").expect_error(504);
}

/// A pipe whose two ends wait for each other, and a stream whose keep-alive is rare: nothing goes through the proxy for longer
/// than the minute after which proxies lose patience by default.
pub fn who_is_silent_for_longer_than_a_minute_is_not_cut(door: Door) {
    const SILENCE: Duration = Duration::from_secs(66);
    let Some(scene) = Scene::new(door, &[("RELAY_KEEP_ALIVE", "600")]) else { return };
    let crate::cama::Running::Serve(serve) = &scene.relay else { unreachable!("this is about proxies") };
    let (host, mut stream) = serve.listening_host();
    let client = serve.listening_client(&host.id);
    let made = scene.call("PUT", "/cama/session", &[], b"").expect(201);
    let location = made.header("location");
    let path = &location[location.find("/cama/").unwrap()..];
    let cookie = format!("token=\"{}\"", made.header("token"));
    let receiver = scene.start("GET", path, &[("Cookie", &cookie), ("X-Timeout", "300")], None);
    sleep(SILENCE);
    serve.send(&client.token, "[1]").expect(200);
    assert_eq!(stream.body(), json!([1]));
    scene.call("POST", path, &[("X-Timeout", "30")], b"at last").expect(200);
    assert_eq!(hear(receiver).expect(200).body, b"at last");
}
