//! Where `serve` listens, and what it speaks there: several addresses, TLS, HTTP/2.

use super::Serve;
use crate::place::{Folder, LONG, have, kill, skip, until};
use rustix::process::Signal;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};

fn curl(arguments: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "60"]).args(arguments);
    command
}

/// What `curl` says; nothing where it fails.
fn said(arguments: &[&str]) -> String {
    String::from_utf8(curl(arguments).stderr(Stdio::null()).output().unwrap().stdout).unwrap()
}

/// Makes a certificate for localhost, and its key.
fn certify(folder: &Folder) -> [PathBuf; 2] {
    let files = [folder.join("certificate"), folder.join("key")];
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-out"])
        .arg(&files[0])
        .arg("-keyout")
        .arg(&files[1])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    files
}

#[test]
fn tls_is_spoken_at_every_port_and_its_certificate_is_read_again() {
    if !have("openssl") || !have("curl") {
        return skip("openssl or curl is not installed");
    }
    let folder = Folder::new();
    let [certificate, key] = certify(&folder).map(|path| path.to_str().unwrap().to_owned());
    let socket = folder.join("socket").to_str().unwrap().to_owned();
    let at_socket = format!("unix:{socket}");
    let relay = Serve::with_options(&[], &["--tls-cert", &certificate, "--tls-key", &key, "--listen", &at_socket]);
    let start = relay.log();
    assert!(start.contains("https://") && start.contains(&format!(" and {at_socket}, data in ")), "{start}");
    let url = format!("https://localhost:{}", relay.address.port());
    let ping = format!("{url}/?action=ping&timestamp=7");
    for (option, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let answer = said(&[option, "--cacert", &certificate, "-w", " %{http_version}", "-X", "POST", &ping]);
        assert_eq!(answer, format!("{{\"pong\":7}} {version}"));
    }
    // A socket file needs no TLS.
    let answer = said(&["--unix-socket", &socket, "-X", "POST", "http://x/?action=ping&timestamp=8"]);
    assert_eq!(answer, "{\"pong\":8}");

    // A stream over HTTP/2 stays open while the certificate changes.
    let post = |query: &str, body: &str| {
        let answer = said(&["--unix-socket", &socket, "-d", body, &format!("http://x/?{query}")]);
        serde_json::from_str::<serde_json::Value>(&answer).unwrap()
    };
    let host = post("action=host", "");
    let token = host["hostToken"].as_str().unwrap();
    let events = folder.join("events");
    let mut stream = curl(&["-N", "--http2", "--cacert", &certificate, &format!("{url}/?token={token}")])
        .stdout(File::create(&events).unwrap())
        .spawn()
        .unwrap();
    let has = |text: &str| fs::read_to_string(&events).unwrap().contains(text);
    until("the stream has begun", LONG, || has("Connected"));
    let client = post(&format!("action=join&hostId={}", host["hostId"].as_str().unwrap()), "");
    let client = client["clientToken"].as_str().unwrap();
    let old = fs::read(&certificate).unwrap();
    certify(&folder);
    assert_ne!(fs::read(&certificate).unwrap(), old);
    kill(relay.pid(), Signal::HUP);
    until("the new certificate is in use", LONG, || {
        said(&["--cacert", &certificate, "-X", "POST", &ping]) == "{\"pong\":7}"
    });
    // One that cannot be read changes nothing.
    fs::write(&certificate, "nonsense").unwrap();
    kill(relay.pid(), Signal::HUP);
    until("the log says so", LONG, || relay.log().contains("the certificate stays as it was"));
    post(&format!("token={client}"), "\"hello\"");
    until("the message has come", LONG, || has("hello"));
    stream.kill().unwrap();
    stream.wait().unwrap();
}

#[test]
fn http2_is_spoken_to_whoever_begins_with_it() {
    if !have("curl") {
        return skip("curl is not installed");
    }
    let relay = Serve::new();
    let url = format!("http://{}/?action=ping&timestamp=7", relay.address);
    let answer = said(&["--http2-prior-knowledge", "-w", " %{http_version}", "-X", "POST", &url]);
    assert_eq!(answer, "{\"pong\":7} 2");
}

#[test]
fn a_certificate_that_cannot_be_used_is_named() {
    let (code, words) =
        super::run(&mut super::program(&["serve", "--tls-cert", "/nowhere/c", "--tls-key", "/nowhere/k"]));
    assert!(code == Some(1) && words.contains("/nowhere/c"), "{code:?}: {words}");
}
