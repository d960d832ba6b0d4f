//! What only a web server can get wrong.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::cama::{Scene, hear, pour};
use crate::door::Door;
use crate::place::{LONG, everything_below, have, processes_below, records, relays_running, repository, skip, until};
use crate::relay::{Relay as _, Talk as _};
use crate::serve::Serve;
use crate::stream::Item;

pub fn a_body_arrives_however_its_length_is_told(door: Door) {
    let Some(relay) = door.server(&[]) else { return };
    let (host, mut stream) = relay.listening_host();
    let client = relay.join(&host.id);
    let post = |query: &str, headers: &str, body: &str| {
        let path = "/cgi-bin/relay.cgi";
        let request =
            format!("POST {path}?{query} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n{headers}\r\n{body}");
        relay.raw(request.as_bytes())
    };
    let send = format!("token={client}");
    post(&send, "Content-Length: 7\r\nContent-Type: application/json\r\n", "[1,2,3]").expect(200);
    assert_eq!(stream.body(), json!([1, 2, 3]));
    post(&send, "Content-Length: 3\r\nContent-Type: text/plain\r\n", "\"a\"").expect(200);
    assert_eq!(stream.body(), json!("a"));
    post(&send, "Content-Length: 0\r\n", "").expect(200);
    assert_eq!(stream.body(), json!({}));

    // mini_httpd knows no chunked coding.
    if door != Door::MiniHttpd {
        post(&send, "Transfer-Encoding: chunked\r\n", "4\r\n[4,5\r\n3\r\n,6]\r\n0\r\n\r\n").expect(200);
        assert_eq!(stream.body(), json!([4, 5, 6]));
    }
    // `curl -X POST` sends no length at all, which means an empty body (RFC 9112, 6.3). lighttpd wants one in any case,
    // and under mini_httpd the relay may, which cannot tell this from a chunked body there.
    let statuses: &[u16] = match door {
        Door::Lighttpd => &[411],
        Door::MiniHttpd => &[200, 411],
        _ => &[200],
    };
    for query in ["action=host", &send] {
        let reply = post(query, "", "");
        assert!(statuses.contains(&reply.status), "{query}: {reply:?}");
        if reply.status == 200 && query == send {
            assert_eq!(stream.body(), json!({}));
        }
    }
}

pub fn an_answer_arrives_however_large_the_body_was(door: Door) {
    let Some(scene) = Scene::new(door, &[]) else { return };
    let made = scene.call("POST", "/?action=host", &[], b"").expect(200);
    let made: serde_json::Value = serde_json::from_slice(&made.body).unwrap();
    let token = format!("/?token={}", made["hostToken"].as_str().unwrap());
    for (path, status) in [(&*token, 413), ("/?token=nonsense", 401), ("/?action=ping", 200), ("/cama/session/x", 404)]
    {
        for size in [20_000_000, 100_000_000] {
            let mut socket = scene.connect();
            let head = scene.head("POST", path, &[], &format!("Content-Length: {size}\r\n"));
            socket.write_all(head.as_bytes()).unwrap();
            let pouring = pour(&socket, size);
            let answer = hear(socket);
            assert_eq!(answer.status, status, "{size} bytes to {path}: {answer:?}");
            pouring.join().unwrap();
        }
    }
}

/// Behind Node's `compression`, which compresses event streams too, and gives them away when they end.
#[test]
fn events_pass_through_a_proxy_that_compresses() {
    let relay = Serve::new();
    passes("tests/client", "compression.cjs", &[&relay.url()]);
}

/// 40 hosts, some of which have listened, are gone 95 s after their end (a lifetime, the half of one for a round of the
/// sweep, 5 s) with two requests a second, whatever the web server does to a program that has answered. Here a lifetime has
/// 8 s: 17 s are 34 pings at most, of which each has to look at the 32 of 256 shards that are due then.
#[test]
fn dead_hosts_are_gone_in_time_under_every_web_server() {
    const LIFETIME: u32 = 8;
    let doors = [Door::Lighttpd, Door::ApacheEvent, Door::ApachePrefork, Door::MiniHttpd, Door::NginxFcgiwrap];
    std::thread::scope(|scope| {
        for door in doors {
            let swept = move || {
                let lifetime = LIFETIME.to_string();
                let settings = [
                    ("RELAY_SESSION_LIFETIME", &*lifetime),
                    // A host is kept for as long as a message to it may be.
                    ("RELAY_MESSAGE_LIFETIME", &lifetime),
                    // A web server notices soon then that a host has left.
                    ("RELAY_KEEP_ALIVE", "0.5"),
                ];
                let Some(relay) = door.server(&settings) else { return };
                for number in 0..40 {
                    let host = relay.host("");
                    // At once: on a busy machine forty registrations may take longer than a session lives.
                    if number < 5 {
                        relay.open(&host.token).hang_up();
                    }
                }
                until("the streams have ended", LONG, || relays_running(relay.folder().path()) == 0);
                let left = || records(&relay.folder().join("cgi-bin/data"), "hosts").len();
                let mut pings = 0;
                while left() > 0 {
                    pings += 1;
                    assert!(pings <= 2 * (LIFETIME + LIFETIME / 2 + 5), "{door:?}: {} are left", left());
                    relay.post("action=ping", b"").expect(200);
                    std::thread::sleep(Duration::from_millis(500));
                }
            };
            std::thread::Builder::new().name(format!("{door:?}")).spawn_scoped(scope, swept).unwrap();
        }
    });
}

pub fn what_the_relay_keeps_is_not_on_the_web(door: Door) {
    // A web server that starts without settings has the relay make the folder; with them it was there before.
    for settings in [&[][..], &[("RELAY_PREFIX", "sesame")][..]] {
        let Some(relay) = door.server(settings) else { return };
        let (host, _stream) = relay.listening_host();
        relay.send(&relay.join(&host.id), r#""sesame""#).expect(200);
        let data = relay.folder().join("cgi-bin/data");
        assert!(data.join("secret").is_file(), "the relay keeps its secret in data/ beside it");

        for path in everything_below(&data) {
            let url = path.strip_prefix(relay.folder().path()).unwrap().to_str().unwrap().to_owned();
            // Asking for a FIFO would wait for a writer, in a server that serves it.
            let spellings = [
                format!("/{url}"),
                format!("/{url}/"),
                format!("/cgi-bin//{}", &url[8..]),
                format!("/{}", url.replace("data", "%64ata")),
            ];
            for spelling in spellings {
                let reply = relay.page(&spelling);
                // A folder's name without a slash may be sent on to the one with it, which is asked for as well.
                let sent_on = [301, 302].contains(&reply.status) && !spelling.ends_with('/');
                assert!(sent_on || [400, 403, 404].contains(&reply.status), "{spelling}: {reply:?}");
                for kept in ["sesame", "hosts", "Token"] {
                    assert!(
                        !reply.body.contains(kept) || spelling.contains(kept),
                        "{spelling} shows {kept}: {reply:?}"
                    );
                }
            }
        }
        let secret = std::fs::read(data.join("secret")).unwrap();
        assert!(secret.len() >= 16);
    }
}

pub fn stopping_the_server_leaves_no_process_behind(door: Door) {
    let Some(mut relay) = door.server(&[]) else { return };
    let (host, mut host_stream) = relay.listening_host();
    let mut client = relay.listening_client(&host.id);
    // The program of a request that was answered may still be sweeping.
    until("only the streams run", LONG, || relays_running(relay.folder().path()) == 2);
    relay.stop();
    until("every process ended", Duration::from_secs(10), || processes_below(relay.folder().path()).is_empty());
    for stream in [&mut host_stream, &mut client.stream] {
        while matches!(stream.next_event(LONG), Item::Event(_)) {}
        assert_eq!(stream.next_event(LONG), Item::End);
    }
}

/// The `uhst` package as published on npm, unchanged, on Node: a host, three clients, echo, broadcast and both closed
/// events, see `tests/client/client.cjs`. With the default settings, as a user meets them.
pub fn the_published_client_works(door: Door) {
    let Some(server) = door.server(&[]) else { return };
    passes("tests/client", "client.cjs", &[&server.url()]);
}

/// The page for people, and the `uhst` package in a page of another origin, in a real browser: see
/// `tests/browser/page.mjs`.
pub fn the_page_works_in_a_browser(door: Door) {
    let Some(server) = door.server(&[]) else { return };
    // Look at them: target/screenshots/.
    let shots = repository().join("target/screenshots");
    let pictures = ["light", "dark", "phone", "red"].map(|name| shots.join(format!("{name}.png")));
    for picture in &pictures {
        let _ = std::fs::remove_file(picture);
    }
    page_works_in_a_browser(&server.url(), &["lighttpd", shots.to_str().unwrap()]);
    for picture in pictures {
        // Without a browser the test has been skipped.
        assert!(!have("chromium") || picture.is_file(), "there is no {}", picture.display());
    }
}

/// Of which web server, and where pictures go, stands in `arguments`.
pub fn page_works_in_a_browser(url: &str, arguments: &[&str]) {
    passes_in_a_browser("page.mjs", &[&[url], arguments].concat());
}

/// Runs a script of `tests/browser`.
pub fn passes_in_a_browser(script: &str, arguments: &[&str]) {
    // A browser needs a machine to itself, more or less.
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !have("chromium") {
        return skip("chromium is not installed");
    }
    passes("tests/browser", script, arguments);
}

/// Runs a script on Node against a relay. It has a time limit of its own for every step, and says PASSED at its end.
///
/// It gets a second and a third chance: what only fails while the machine is busy with something else is no fault.
pub fn passes(folder: &str, script: &str, arguments: &[&str]) {
    let folder = repository().join(folder);
    if !have("node") {
        return skip("node is not installed");
    }
    if !folder.join("node_modules").is_dir() {
        return skip("the npm packages are not there: `npm ci` in the script's folder, or `tests/run`, installs them");
    }
    for chances_left in [2, 1, 0] {
        let output = Command::new("node").arg(folder.join(script)).args(arguments).stdin(Stdio::null()).output();
        let output = output.expect("node runs");
        let said = String::from_utf8_lossy(&output.stdout);
        let complained = String::from_utf8_lossy(&output.stderr);
        if output.status.success() && said.trim_end().ends_with("PASSED") {
            return;
        }
        eprintln!("{script}: {}\n{said}\n{complained}", output.status);
        assert!(chances_left > 0, "{script} has failed three times: {said} {complained}");
    }
}
