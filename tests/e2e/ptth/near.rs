//! A client and a far end at one `serve`, and at one `serve` and a CGI program beside it.

use super::{Apart, Behind, NAME, head};
use crate::cama::near::fifos;
use crate::door::Door;
use crate::place::{LONG, have, kill, skip, until};
use crate::serve::Serve;
use rustix::process::{Pid, Signal};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use uhst_relay::ptth::HEAD_FIELD;

fn curl(url: &str, options: &[&str]) -> Child {
    let mut curl = Command::new("curl");
    curl.args(["-sN", "--max-time", "60"]).args(options).arg(url);
    curl.stdout(Stdio::piped()).spawn().expect("curl runs")
}

#[test]
fn an_answer_that_breaks_off_is_seen_to_be_cut_short() {
    if !have("curl") {
        return skip("curl is not installed");
    }
    let behind = Behind::new(Door::Serve, &[]).expect("it needs nothing");
    let data = behind.scene.folder().join("cgi-bin/data/ptth");
    let url = format!("{}/frontend/servers/{NAME}/", behind.scene.url().trim_end_matches('/'));
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for (about, body) in [("Content-Length: 10", &b"hello"[..]), ("Transfer-Encoding: chunked", b"5\r\nhello\r\n")]
        {
            let client = curl(&url, &[version, "-H", "TE: trailers"]);
            let request = behind.one();
            let (key, head) = (&*behind.key, head(200, &[]));
            let mut far_end = behind.scene.connect();
            let headers = [("X-ApiKey", key), (HEAD_FIELD, &*head)];
            let path = format!("/7ZSFUKGV/http_response/{}", request.id);
            let head = behind.scene.head("POST", &path, &headers, &format!("{about}\r\n"));
            far_end.write_all(head.as_bytes()).unwrap();
            far_end.write_all(body).unwrap();
            until("it flows", LONG, || behind.files().is_empty());
            assert_eq!(fifos(&data), Vec::<PathBuf>::new());
            std::thread::sleep(std::time::Duration::from_millis(200));
            drop(far_end);
            let (got, status) = crate::bare::finish(client);
            assert_eq!(got, b"hello", "{version} {about}");
            // CURLE_PARTIAL_FILE, or without a length CURLE_RECV_ERROR; CURLE_HTTP2_STREAM.
            assert!([Some(18), Some(56), Some(92)].contains(&status.code()), "{version} {about}: {status}");
        }
    }
}

#[test]
fn a_client_of_a_server_is_answered_by_a_cgi_program_and_the_other_way() {
    if !have("curl") {
        return skip("curl is not installed");
    }
    let serve = Serve::new();
    let apart = Apart::of(serve.cgi());
    let url = |path: &str| format!("{}{path}", serve.url().trim_end_matches('/'));
    let key = format!("X-ApiKey: {}", apart.key);

    // The client waits at the server.
    let listener = apart.listener();
    let client = curl(&url(&format!("/frontend/servers/{NAME}/x")), &[]);
    let request = Apart::given(listener);
    apart.answers(&request, client);

    // The far end waits there, and answers there.
    let listener = curl(&url(&format!("/7ZSFUKGV/http_listen/{NAME}")), &["-H", &key]);
    apart.until_there("far-ends");
    assert_eq!(fifos(&serve.data().join("ptth")), Vec::<PathBuf>::new());
    let client = apart.client("y");
    let [request] = <[_; 1]>::try_from(super::understood(&crate::bare::finish(listener).0)).unwrap();
    let head = format!("{HEAD_FIELD}: {}", head(200, &[]));
    let path = format!("/7ZSFUKGV/http_response/{}", request.id);
    let far_end = curl(&url(&path), &["-H", &key, "-H", &head, "-d", "Hello"]);
    let (got, _) = crate::bare::finish(client);
    assert!(got.ends_with(b"Hello"), "{}", String::from_utf8_lossy(&got));
    assert_eq!(crate::bare::finish(far_end).0, b"{}");
}

#[test]
fn a_far_end_that_is_killed_before_it_has_the_request_leaves_it_to_one_of_the_other_process() {
    if !have("curl") {
        return skip("curl is not installed");
    }
    for is_server_killed in [true, false] {
        let serve = Serve::new();
        let apart = Apart::of(serve.cgi());
        let url = format!("{}/7ZSFUKGV/http_listen/{NAME}", serve.url().trim_end_matches('/'));
        let key = format!("X-ApiKey: {}", apart.key);
        let at_server = || curl(&url, &["-H", &key]);
        // It sleeps, and cannot look for what it is called for.
        let (killed, pid) = if is_server_killed {
            (at_server(), serve.pid())
        } else {
            let killed = apart.listener();
            let pid = Pid::from_child(&killed);
            (killed, pid)
        };
        apart.until_there("far-ends");
        kill(pid, Signal::STOP);
        let client = apart.client("z");
        apart.until_there("waiting");
        kill(pid, Signal::KILL);
        crate::bare::finish(killed);
        let request = if is_server_killed {
            Apart::given(apart.listener())
        } else {
            let [request] = <[_; 1]>::try_from(super::understood(&crate::bare::finish(at_server()).0)).unwrap();
            request
        };
        apart.answers(&request, client);
    }
}

#[test]
fn a_far_end_of_each_process_is_called_though_one_of_another_is_deaf() {
    if !have("curl") {
        return skip("curl is not installed");
    }
    let serve = Serve::new();
    let apart = Apart::of(serve.cgi());
    let deaf = apart.listener();
    apart.until_there("far-ends");
    kill(Pid::from_child(&deaf), Signal::STOP);
    let url = format!("{}/7ZSFUKGV/http_listen/{NAME}", serve.url().trim_end_matches('/'));
    let key = format!("X-ApiKey: {}", apart.key);
    for number in 0..4 {
        let there = apart.names("far-ends").len();
        let listener = curl(&url, &["-H", &key]);
        until("it has come", LONG, || apart.names("far-ends").len() > there);
        // Whichever is called first, the client sees to it that the other one is called too.
        let client = apart.client(&number.to_string());
        let [request] = <[_; 1]>::try_from(super::understood(&crate::bare::finish(listener).0)).unwrap();
        apart.answers(&request, client);
    }
    kill(Pid::from_child(&deaf), Signal::KILL);
    crate::bare::finish(deaf);
    apart.works();
}
