//! What RFC 3875 asks of a program, and what shared hosts do to one.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::bare::{Bare, finish};
use crate::place::{Folder, LONG, install_program, is_root, program, skip};
use crate::relay::{Call, Relay as _, Talk as _};

const PING: Call = Call { method: "POST", path_info: "", query: "action=ping&timestamp=1", headers: &[], body: b"" };

#[test]
fn a_body_is_read_as_far_as_the_server_says() {
    let relay = Bare::new();
    let (host, mut stream) = relay.listening_host();
    let client = relay.join(&host.id);
    let query = format!("token={client}");
    let run = |length: Option<&str>, body: &[u8]| {
        let mut command = relay.request(&Call { query: &query, body, ..Call::default() });
        match length {
            None => command.env_remove("CONTENT_LENGTH").env("HTTP_TRANSFER_ENCODING", "chunked"),
            Some(length) => command.env("CONTENT_LENGTH", length),
        };
        relay.run(&mut command, body)
    };
    // A server that takes the chunks out of a chunked body has no length to tell: the body is all that comes.
    run(None, b"[1]").expect(200);
    assert_eq!(stream.body(), json!([1]));
    run(None, b"").expect(200);
    assert_eq!(stream.body(), json!({}));
    // RFC 3875, 4.1.2: no length, or an empty one, is no body.
    run(Some(""), b"").expect(200);
    assert_eq!(stream.body(), json!({}));
    // Not one byte more than the server says is the body.
    run(Some("3"), b"[3][4]").expect(200);
    assert_eq!(stream.body(), json!([3]));
    // A client that hung up in the middle has not said this.
    run(Some("10"), b"5").expect_error(400);
    run(Some("2"), b"").expect_error(400);
    for nonsense in ["many", "-1", "1e3", "99999999999999999999999999"] {
        let reply = run(Some(nonsense), b"6");
        assert!([400, 413].contains(&reply.status), "{nonsense}: {reply:?}");
    }
    run(Some("1"), b"7").expect(200);
    assert_eq!(stream.body(), json!(7), "nothing of what was refused arrives");
}

#[test]
fn arguments_from_a_web_server_are_ignored() {
    let relay = Bare::new();
    for arguments in [&["serve"][..], &["--help"], &["--version"], &["sweep"], &["", "-x", "\u{fffd}"]] {
        let mut command = relay.request(&PING);
        command.args(arguments);
        assert_eq!(relay.run(&mut command, b"").expect(200).json(), json!({"pong": 1}), "{arguments:?}");
    }
}

/// Some small servers forget to say what a program is to talk; what they ask is a web request all the same.
#[test]
fn a_request_without_gateway_interface_is_no_command_line() {
    let relay = Bare::new();
    for arguments in [&["token", "host", "a"][..], &["serve"], &["--help"], &["sweep"]] {
        let mut command = relay.request(&PING);
        command.env_remove("GATEWAY_INTERFACE").args(arguments);
        assert_eq!(relay.run(&mut command, b"").expect(200).json(), json!({"pong": 1}), "{arguments:?}");
    }
}

#[test]
fn a_person_on_the_command_line_is_answered() {
    let relay = Bare::new();
    let output = relay.command_line(&["--version"]).output().unwrap();
    assert!(output.status.success());
    let version = String::from_utf8_lossy(&output.stdout);
    assert!(version.starts_with(concat!("uhst-relay ", env!("CARGO_PKG_VERSION"))), "{version}");

    let output = relay.command_line(&["no-such-command"]).output().unwrap();
    assert!(!output.status.success(), "an unknown command is an error");
    assert!(relay.log().contains("no-such-command"), "and says which: {}", relay.log());
}

#[test]
fn a_script_named_nph_speaks_http_itself() {
    let relay = Bare::new().named("/cgi-bin/nph-relay.cgi");
    let whole = |call: &Call| {
        let (output, status) = finish(relay.request(call).spawn().unwrap());
        assert!(status.success());
        String::from_utf8(output).unwrap()
    };
    let ping = whole(&PING);
    assert!(ping.starts_with("HTTP/1.1 200 OK\r\n") || ping.starts_with("HTTP/1.0 200 OK\r\n"), "{ping:?}");
    assert!(ping.contains("\r\n\r\n") && ping.trim_end().ends_with(r#"{"pong":1}"#), "{ping:?}");
    let refused = whole(&Call { method: "DELETE", ..PING });
    assert!(refused.split("\r\n").next().is_some_and(|line| line.contains(" 405 ")), "{refused:?}");
    // The end of such an answer is the end of the connection.
    assert!(
        ping.to_lowercase().contains("connection: close\r\n") || ping.to_lowercase().contains("content-length:"),
        "{ping:?}"
    );

    let (host, mut stream) = relay.listening_host();
    relay.send(&relay.join(&host.id), "1").expect(200);
    assert_eq!(stream.body(), json!(1));
}

/// As thttpd and `mini_httpd` run it: the connection itself is its input, its output and its log.
#[test]
fn a_script_named_nph_that_has_the_connection_itself_misses_whoever_leaves() {
    let relay = Bare::with(&[("RELAY_KEEP_ALIVE", "1")]).named("/cgi-bin/nph-relay.cgi");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let run = |call: &Call| {
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        client.write_all(call.body).unwrap();
        let connection = OwnedFd::from(listener.accept().unwrap().0);
        let end = || Stdio::from(connection.try_clone().unwrap());
        (client, relay.request(call).stdin(end()).stdout(end()).stderr(end()).spawn().unwrap())
    };
    let ask = |call: &Call| {
        let (mut client, mut program) = run(call);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(program.wait().unwrap().success());
        answer
    };
    let (host, mut host_stream) = relay.listening_host();
    let token = relay.join(&host.id);
    let query = format!("token={token}");
    let sent = ask(&Call { query: &query, body: b"[1]", ..Call::default() });
    assert!(sent.starts_with("HTTP/1.1 200 OK\r\n") && sent.ends_with("\r\n\r\n{}"), "{sent:?}");
    assert_eq!(host_stream.body(), json!([1]));

    let (mut client, mut program) = run(&Call { method: "GET", query: &query, ..Call::default() });
    let mut heard = Vec::new();
    while !heard.ends_with(b": Connected.\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        heard.push(byte[0]);
    }
    drop(client);
    host_stream.expect_closed("client_closed", crate::token::payload(&token)["clientId"].as_str().unwrap());
    assert!(program.wait().unwrap().success());
}

#[test]
fn a_script_of_another_name_leaves_http_to_the_server() {
    for name in ["/cgi-bin/relay.cgi", "/nph-scripts/relay.cgi", "/cgi-bin/relay-nph-.cgi", "/"] {
        let relay = Bare::new().named(name);
        let (output, _) = finish(relay.request(&PING).spawn().unwrap());
        let text = String::from_utf8(output).unwrap();
        assert!(!text.starts_with("HTTP/"), "{name}: {text:?}");
        assert_eq!(relay.call(&PING).status, 200);
    }
}

#[test]
fn bytes_that_are_no_text_in_the_environment_are_an_error_and_no_crash() {
    let relay = Bare::new();
    let latin1: &[&[u8]] =
        &[b"action=ping\xff", b"action=host&hostId=caf\xe9", b"\xff", b"token=\xff\xfe", b"action=host&\xe9=1"];
    for &query in latin1 {
        let mut command = relay.request(&Call::default());
        command.env("QUERY_STRING", OsStr::from_bytes(query));
        let reply = relay.run(&mut command, b"");
        assert!([400, 401].contains(&reply.status), "{:?}: {reply:?}", String::from_utf8_lossy(query));
        let status = reply.status;
        reply.expect_error(status);
    }
    for name in [
        "HTTP_ORIGIN",
        "HTTP_LAST_EVENT_ID",
        "HTTP_USER_AGENT",
        "CONTENT_TYPE",
        "REMOTE_ADDR",
        "HTTP_COOKIE",
        "SERVER_NAME",
    ] {
        let mut command = relay.request(&PING);
        command.env(name, OsStr::from_bytes(b"\xff\x01"));
        let reply = relay.run(&mut command, b"");
        assert!(reply.status < 500, "{name}: {reply:?}");
    }
    for (name, value) in [
        ("REQUEST_METHOD", &b"P\xff"[..]),
        ("REQUEST_METHOD", b""),
        ("PATH_INFO", b"/\xff"),
        ("CONTENT_LENGTH", b"\xff"),
    ] {
        let mut command = relay.request(&PING);
        command.env(name, OsStr::from_bytes(value));
        let reply = relay.run(&mut command, b"");
        assert!((400..=500).contains(&reply.status) || reply.status == 501, "{name}: {reply:?}");
    }
}

#[test]
fn no_query_makes_the_relay_fail() {
    let relay = Bare::new();
    let mut random = crate::endurance::Random::new(1);
    let words: [&[u8]; 20] = [
        b"action",
        b"host",
        b"join",
        b"ping",
        b"token",
        b"hostId",
        b"=",
        b"=",
        b"&",
        b"&",
        b"%",
        b"%2",
        b"%00",
        b"%zz",
        b"+",
        b"\xff",
        b"..",
        b";",
        b"[]",
        b"timestamp",
    ];
    for _ in 0..300 {
        let query: Vec<u8> = (0..random.below(12)).flat_map(|_| words[random.index(words.len())]).copied().collect();
        let method = ["GET", "POST", "HEAD", "OPTIONS"][random.index(4)];
        let mut command = relay.request(&Call { method, ..Call::default() });
        command.env("QUERY_STRING", OsStr::from_bytes(&query));
        let reply = relay.run(&mut command, b"");
        assert!(reply.status < 500, "{method} {:?}: {reply:?}", String::from_utf8_lossy(&query));
        assert!(reply.header("access-control-allow-origin").is_some(), "{reply:?}");
    }
}

#[test]
fn no_answer_carries_a_line_break_from_outside() {
    let relay = Bare::with(&[("RELAY_ALLOWED_ORIGINS", "https://a.example")]);
    for origin in ["https://a.example\r\nX-Evil: 1", "https://a.example\nX-Evil: 1", "\r\n\r\n<script>"] {
        let reply = relay.call(&Call { headers: &[("Origin", origin)], ..PING });
        assert_eq!(reply.status, 403, "{reply:?}");
        assert_eq!(reply.header("x-evil"), None);
    }
    let relay = Bare::new();
    let (host, _) = relay.listening_host();
    for last in ["1\r\nX-Evil: 1", "1\n\ndata: evil", "-1", "99999999999999999999999", "abc", ""] {
        match relay.listen(&format!("token={}", host.token), &[("Last-Event-ID", last)]) {
            Ok(mut stream) => {
                assert_eq!(crate::relay::header(&stream.headers, "x-evil"), None);
                stream.expect_comment("Connected.");
                stream.expect_silence(std::time::Duration::from_millis(100));
            }
            Err(reply) => drop(reply.expect_error(400)),
        }
    }
}

#[test]
fn the_program_needs_nothing_but_itself() {
    if !is_root() {
        return skip("only root may change the root folder");
    }
    let root = Folder::new();
    install_program(&root.join("relay.cgi"));
    let request = |query: &str, data: Option<&str>| {
        let mut command = Command::new("/usr/sbin/chroot");
        command.arg(root.path()).arg("/relay.cgi").env_clear();
        command.envs([("GATEWAY_INTERFACE", "CGI/1.1"), ("REQUEST_METHOD", "POST"), ("SCRIPT_NAME", "/relay.cgi")]);
        command.envs([("SCRIPT_FILENAME", "/relay.cgi"), ("QUERY_STRING", query), ("CONTENT_LENGTH", "0")]);
        command.envs(data.map(|folder| ("RELAY_DATA_DIR", folder)));
        let output = command.stdin(Stdio::null()).output().expect("chroot runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
        text
    };
    assert!(request("action=ping&timestamp=1", None).ends_with(r#"{"pong":1}"#));
    for data in [Some("/elsewhere"), None] {
        let text = request("action=host", data);
        assert!(text.starts_with("Status: 200") && text.contains("hostToken"), "data in {data:?}: {text}");
    }
    assert!(root.join("elsewhere/secret").is_file());
    assert!(root.join("data/secret").is_file(), "without a setting the data folder is beside the program");
    fs::remove_file(root.join("relay.cgi")).unwrap();
    let names = fs::read_dir(root.path()).unwrap().count();
    assert_eq!(names, 2, "only the data folders were made");
}

#[test]
fn the_program_fits_in_two_mebibytes() {
    let size = fs::metadata(program()).unwrap().len();
    assert!(size <= 2 << 20, "{size} bytes");
}

#[test]
fn what_the_relay_keeps_is_for_its_own_user_alone() {
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
    let relay = Bare::new();
    // The widest umask must not matter.
    let wide = |call: &Call| {
        let request = relay.request(call);
        let mut command = Command::new("sh");
        command
            .args(["-c", "umask 0; exec \"$0\""])
            .arg(relay.program())
            .env_clear()
            .current_dir(relay.folder().join("cgi-bin"));
        command.envs(request.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    };
    let json = relay.run(&mut wide(&Call { query: "action=host", ..Call::default() }), b"").expect(200).json();
    let (id, token) = (json["hostId"].as_str().unwrap(), json["hostToken"].as_str().unwrap());
    let query = format!("token={token}");
    let stream = wide(&Call { method: "GET", query: &query, ..Call::default() }).spawn().unwrap();
    let mut stream = crate::stream::Stream::from_process(stream).expect("a stream");
    let join = format!("action=join&hostId={id}");
    let client = relay.run(&mut wide(&Call { query: &join, ..Call::default() }), b"").expect(200).json();
    let send = format!("token={}", client["clientToken"].as_str().unwrap());
    let body = b"1";
    relay.run(&mut wide(&Call { query: &send, body, ..Call::default() }), body).expect(200);
    assert_eq!(stream.body(), json!(1));

    let (mut files, mut folders, mut pipes) = (0, 0, 0);
    for path in crate::place::everything_below(&relay.data()) {
        let about = fs::symlink_metadata(&path).unwrap();
        let mode = about.permissions().mode() & 0o7777;
        if about.is_dir() {
            folders += 1;
            assert_eq!(mode, 0o700, "{}: {mode:o}", path.display());
        } else {
            files += 1;
            pipes += u32::from(about.file_type().is_fifo());
            // Those two tell nothing, so a web server of another user may read them.
            let denies = path.ends_with("data/.htaccess") || path.ends_with("data/index.html");
            assert!(mode == 0o600 || denies && mode == 0o644, "{}: {mode:o}", path.display());
        }
    }
    assert!(files > 4 && folders > 3 && pipes > 0, "{files} files, {folders} folders, {pipes} pipes were looked at");
    let here = |name: &str| Path::new(&relay.data()).join(name).is_file();
    assert!(here(".htaccess") && here("index.html"), "the relay denies its folder to the web");
}
