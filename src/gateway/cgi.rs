//! The door of a web server: RFC 3875, a process a request.

use super::application::Application;
use super::body::{BODY_TIME, Body, BodySource, TimedReader};
use super::client::Client;
use super::forwarded::Asker;
use super::outgoing::{Framing, Outgoing};
use super::reply::{Content, Incoming, Reply, Status};
use super::request::Request;
use super::stop::{catch_signals, stop_signal};
use crate::config::{SettingError, Settings, TrustedProxies};
use crate::syntax::digits;
use rustix::fd::{AsFd, BorrowedFd};
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

/// Has the application answer the one request that this process was started for.
#[must_use]
pub fn run(application: &dyn Application) -> ExitCode {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    hush_shared_stderr();
    crate::log::hear_panics();
    let mut reader = TimedReader::new(stdin.as_fd(), BODY_TIME);
    let header = |name: &str| header_field(name);
    let settings = Settings::read(None, |program_folder| program_folder.join("data"));

    let asker = asker(&settings, &header);
    let length = variable("CONTENT_LENGTH").filter(|text| !text.is_empty());
    let path = variable("PATH_INFO").map(OsString::into_string);
    let mount = text("SCRIPT_NAME");
    let path_is_text = !matches!(path, Some(Err(_)));
    let mut request = Request {
        method: text("REQUEST_METHOD"),
        raw_path: raw_path(&text("REQUEST_URI"), &mount, &text("PATH_INFO")),
        path: path.and_then(Result::ok).unwrap_or_default(),
        query: variable("QUERY_STRING").map(OsString::into_vec).unwrap_or_default(),
        header: &header,
        headers: &header_fields,
        mount,
        server: text("SERVER_SOFTWARE"),
        remote: asker.address,
        is_https: asker.is_https,
        // lighttpd alone passes a connection on as it is, if it has been told to (cgi.upgrade); otherwise it takes the wish
        // out of the request.
        can_upgrade: text("SERVER_SOFTWARE").starts_with("lighttpd/"),
        client: Client::new(stdout.as_fd(), false),
        body: Body { length: None, is_awaited: true, reader: &mut io::empty() },
    };
    // RFC 3875, 4.1.2: without CONTENT_LENGTH there is no body, except that servers which take the chunks out of a
    // chunked body leave its name behind; its end is then the end of the input.
    let mut sized;
    let mut no_length = NoLength;
    let malformed = match length.map(|text| digits(text.as_bytes())) {
        Some(Some(length)) => {
            sized = SizedBody { reader, left: length };
            request.body = Body { length: Some(length), is_awaited: true, reader: &mut sized };
            false
        }
        Some(None) => true,
        None => {
            if header("transfer-encoding").is_some() {
                request.body = Body { length: None, is_awaited: true, reader: &mut reader };
            } else if text("SERVER_PROTOCOL") == "HTTP/1.0" {
                // A server that speaks HTTP/1.0 to us does not take chunks apart; a chunked message would be lost
                // without a word. RFC 1945, 7.2.2: a body must have a length then.
                request.body = Body { length: None, is_awaited: true, reader: &mut no_length };
            }
            false
        }
    };

    let mut refused = refused_by_lighttpd(&text("SERVER_SOFTWARE"), &text("REDIRECT_STATUS"));
    if refused == Some(411)
        && let Some(path) = answer_without_length(&text("REQUEST_URI"), &request.mount, &request.path)
            .filter(|path| application.takes_post_without_length(path))
    {
        refused = None;
        "POST".clone_into(&mut request.method);
        request.raw_path.clone_from(&path);
        request.path = path;
    }

    let wrong = match refused {
        Some(status) => Some((Status::Passed(status), "The web server has refused this request by itself.")),
        None if malformed => Some((Status::BadRequest, "CONTENT_LENGTH is not a number.")),
        None if !path_is_text => Some((Status::BadRequest, "The path is not UTF-8.")),
        None => None,
    };
    let head_only = request.method == "HEAD";
    let reply = match (&settings, wrong) {
        (Err(error), _) => {
            say!("uhst-relay: {error}");
            application.answer_without_settings(error, &request)
        }
        (Ok(settings), Some((status, sentence))) => {
            application.refuse(settings, &request, Reply::error(status, sentence))
        }
        (Ok(settings), None) => application.answer(settings, &mut request),
    };
    if !matches!(reply.content, Content::Upgrade(_)) {
        leave_nothing_unread(&mut request.body);
    }
    let has_work = || wrong.is_none() && settings.as_ref().is_ok_and(|settings| application.has_work(settings));
    // Only a stream may last for so long that there is work by its end which there was not at its beginning.
    let is_stream = !head_only && !matches!(reply.content, Content::Whole(_) | Content::Absent);
    let works = !is_stream && has_work();
    if works {
        // lighttpd and Apache send SIGTERM as soon as they have the whole answer, which its length may tell: what comes after
        // it would never be finished.
        let _ = catch_signals();
    }
    let nph = is_nph(&text("SCRIPT_NAME"));
    if let Err(error) = send(&stdout, reply, nph, head_only) {
        // The web server or its client has gone. Streams have noticed by themselves.
        say!("uhst-relay: the answer could not be written: {error}");
    }

    // Before stderr is closed for that work, or the process ends.
    crate::log::flush();
    let can_finish = stop_signal().is_some();
    if let Ok(settings) = &settings
        && can_finish
        && (works || (is_stream && has_work()))
    {
        work_unheard(application, settings);
    }
    ExitCode::SUCCESS
}

/// Whom the request is from, as the web server tells it.
fn asker(settings: &Result<Settings, SettingError>, header: &dyn Fn(&str) -> Option<String>) -> Asker {
    let connection = Asker {
        address: text("REMOTE_ADDR").parse().ok().map(|address: IpAddr| address.to_canonical()),
        // What sets it is no standard; "on" (Apache, lighttpd) and "1" are usual.
        is_https: matches!(text("HTTPS").to_ascii_lowercase().as_str(), "on" | "1"),
    };
    // lighttpd has a variable of the same name for a proxy's X-Forwarded-For and for a client's own X_Forwarded_For. Where
    // there are two, it is not known who has said what.
    let is_told_twice = |field: &str| header_fields().iter().filter(|(name, _)| name == field).count() > 1;
    let header = |field: &str| if is_told_twice(field) { Some("unknown".to_owned()) } else { header(field) };
    match settings {
        // An address that the web server does not tell is no sign of a UNIX socket.
        Ok(settings) => connection.behind(&TrustedProxies { unix: false, ..settings.trusted_proxies.clone() }, &header),
        Err(_) => connection,
    }
}

/// Has the application work when the answer is out. The answer ends where our output ends, so nobody waits for what comes
/// now. fcgiwrap and Apache listen to stderr as well, and with `mod_cgid` stdin is the same socket.
fn work_unheard(application: &dyn Application, settings: &Settings) {
    if let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
        application.work(settings);
    }
}

/// Reads what nobody wants of the body, and sees to it that the web server can let go of the rest.
///
/// Where input and output are one UNIX socket (`mod_cgid`), unread input resets it when this process ends, and the answer is
/// lost. fcgiwrap looks at the answer only when the program has taken the whole body.
fn leave_nothing_unread(body: &mut Body<'_>) {
    if text("SERVER_SOFTWARE").starts_with("nginx") {
        // Its client cannot get the answer any sooner.
        body.reader.give_time(BODY_TIME);
    }
    if body.drain() {
        return;
    }
    if let Ok(input) = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from)
        // Another kind of socket has no such address; it is the client's connection itself then.
        && input.local_addr().is_ok()
        && input.shutdown(Shutdown::Read).is_ok()
    {
        // What was sent before that; the web server's next write fails, and it drops the rest itself.
        let _ = io::copy(&mut &input, &mut io::sink());
    }
}

fn send(stdout: &io::Stdout, reply: Reply, nph: bool, head_only: bool) -> io::Result<()> {
    let mut out = Vec::with_capacity(512);
    if nph {
        // RFC 3875, 5: a non-parsed-header script answers the client itself, so the connection is its to describe.
        // A body without a length ends with the connection (RFC 9112, 6.3).
        write!(out, "HTTP/1.1 {}\r\nServer: uhst-relay\r\nConnection: close\r\n", reply.status)?;
    } else {
        write!(out, "Status: {}\r\n", reply.status)?;
    }
    for (name, value) in &reply.headers {
        out.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    if let Content::Sized(length, _) = reply.content {
        write!(out, "Content-Length: {length}\r\n")?;
    }
    match reply.content {
        Content::Whole(body) => {
            if reply.status != Status::NoContent {
                write!(out, "Content-Length: {}\r\n", body.len())?;
            }
            out.extend_from_slice(b"\r\n");
            if !head_only {
                out.extend_from_slice(&body);
            }
            write_all(stdout, &out)
        }
        Content::Absent => {
            out.extend_from_slice(b"\r\n");
            write_all(stdout, &out)
        }
        Content::Upgrade(talk) => {
            out.extend_from_slice(b"Connection: Upgrade\r\n");
            let _ = catch_signals();
            let stdin = io::stdin();
            let input = Incoming { fd: stdin.as_fd(), begun: Vec::new(), head: out };
            talk(input, &mut Outgoing::new(stdout.as_fd(), Framing::WebServer, false));
            Ok(())
        }
        Content::Stream(produce) | Content::Sized(_, produce) => {
            out.extend_from_slice(b"\r\n");
            let written = write_all(stdout, &out);
            if !head_only {
                // Without it a signal kills the stream, which its peers notice within seconds.
                let _ = catch_signals();
                produce(&mut Outgoing::new(stdout.as_fd(), Framing::WebServer, written.is_err()));
            }
            written
        }
    }
}

/// Past the standard library's line buffer, which would make two writes of one answer.
fn write_all(stdout: &io::Stdout, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(stdout, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Some small web servers make the client's connection a program's stderr too: a line for the log would then stand in the
/// middle of the answer.
fn hush_shared_stderr() {
    use rustix::fs::{FileType, fstat};
    if let (Ok(stdout), Ok(stderr)) = (fstat(rustix::stdio::stdout()), fstat(rustix::stdio::stderr()))
        && (stdout.st_dev, stdout.st_ino) == (stderr.st_dev, stderr.st_ino)
        && matches!(FileType::from_raw_mode(stdout.st_mode), FileType::Fifo | FileType::Socket)
        && let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null")
    {
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}

/// The first bytes of the input, as many as the body has.
struct SizedBody<'a> {
    reader: TimedReader<'a>,
    left: u64,
}

impl Read for SizedBody<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = Read::by_ref(&mut self.reader).take(self.left).read(buffer)?;
        self.left -= got as u64;
        Ok(got)
    }
}

impl BodySource for SizedBody<'_> {
    fn awaited(&self) -> Option<BorrowedFd<'_>> {
        self.reader.awaited().filter(|_| self.left > 0)
    }

    fn give_time(&mut self, time: Duration) {
        self.reader.give_time(time);
    }

    fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let got = self.reader.read_now(&mut buffer[..most])?;
        self.count(got as u64)?;
        Ok(got)
    }

    fn splice_now(&mut self, pipe: BorrowedFd<'_>, most: usize) -> io::Result<Option<u64>> {
        if self.left == 0 {
            return Ok(Some(0));
        }
        let most = most.min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let moved = self.reader.splice_now(pipe, most)?;
        if let Some(moved) = moved {
            self.count(moved)?;
        }
        Ok(moved)
    }
}

impl SizedBody<'_> {
    /// So many have come; none where the body ends before its length.
    fn count(&mut self, bytes: u64) -> io::Result<()> {
        self.left -= bytes;
        if bytes == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

/// A body that cannot be read, because its end cannot be seen.
struct NoLength;

impl BodySource for NoLength {
    fn awaited(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn give_time(&mut self, _: Duration) {}

    fn read_now(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Read for NoLength {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

fn text(name: &str) -> String {
    variable(name).map(|value| value.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A header field's value: RFC 3875, 4.1.18, and the two that have a variable of their own.
fn header_field(name: &str) -> Option<String> {
    let name = name.to_ascii_uppercase().replace('-', "_");
    let variable_name = match name.as_str() {
        "CONTENT_TYPE" | "CONTENT_LENGTH" => name,
        _ => format!("HTTP_{name}"),
    };
    variable(&variable_name)?.into_string().ok().filter(|value| !value.is_empty())
}

/// All that have come this far, in the server's order.
fn header_fields() -> Vec<(String, String)> {
    let named = |(name, value): (OsString, OsString)| {
        let name = name.into_string().ok()?;
        let name = match name.as_str() {
            "CONTENT_TYPE" | "CONTENT_LENGTH" => &name,
            _ => name.strip_prefix("HTTP_")?,
        };
        Some((name.to_ascii_lowercase().replace('_', "-"), value.to_string_lossy().into_owned()))
    };
    std::env::vars_os().filter_map(named).filter(|(_, value)| !value.is_empty()).collect()
}

/// The path after the program's own as the client has encoded it. `REQUEST_URI` is no part of RFC 3875, but most web
/// servers have it; where it is missing, or the server has rewritten it, the decoded path is encoded again.
fn raw_path(request_uri: &str, mount: &str, path_info: &str) -> String {
    let path = request_uri.split('?').next().unwrap_or_default();
    let path = match path.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("", |at| &rest[at..]),
        None => path,
    };
    let means_the_same = |raw: &&str| urlencoding::decode(raw).is_ok_and(|decoded| decoded == path_info);
    path.strip_prefix(mount).filter(means_the_same).map_or_else(|| encode_path(path_info), str::to_owned)
}

/// The status with which lighttpd has refused a request before this program was asked, as its `server.error-handler`. It asks
/// with GET then, whatever the client's method was.
fn refused_by_lighttpd(server: &str, redirect_status: &str) -> Option<u16> {
    let status = redirect_status.parse().ok().filter(|status| (400..600).contains(status));
    status.filter(|_| server.starts_with("lighttpd/"))
}

/// The path of a far end's answer that lighttpd has refused with 411. A POST with neither a length nor chunks has no body
/// (RFC 9112, 6.3), but lighttpd takes none. It refuses a chunked one with 411 too, where it was told to pass on bodies as
/// they come, but has split its path by then. Only a far end gets this way around what lighttpd is told of its path: no
/// other client has a key.
fn answer_without_length(request_uri: &str, mount: &str, path_info: &str) -> Option<String> {
    let path = request_uri.split('?').next()?.strip_prefix(mount)?;
    let is_plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/_".contains(&byte));
    (path_info.is_empty() && is_plain).then(|| path.to_owned())
}

/// RFC 3986, 3.3: what may stand in a path, and the slashes between its segments, stays as it is.
fn encode_path(path: &str) -> String {
    let mut encoded = String::with_capacity(path.len());
    for c in path.chars() {
        if c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/".contains(c) {
            encoded.push(c);
        } else {
            encoded.push_str(&urlencoding::encode(c.encode_utf8(&mut [0; 4])));
        }
    }
    encoded
}

fn is_nph(script_name: &str) -> bool {
    script_name.rsplit('/').next().is_some_and(|name| name.starts_with("nph-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_as_the_client_has_encoded_it() {
        let raw = |uri, path| raw_path(uri, "/cgi-bin/relay.cgi", path);
        assert_eq!(raw("/cgi-bin/relay.cgi/a%2Fb/%61?c=/d", "/a/b/a"), "/a%2Fb/%61");
        assert_eq!(raw("http://host/cgi-bin/relay.cgi/a%20b", "/a b"), "/a%20b");
        assert_eq!(raw("/cgi-bin/relay.cgi", ""), "");
        // Not told, or rewritten.
        assert_eq!(raw("", "/a b/ä%?;:@"), "/a%20b/%C3%A4%25%3F;:@");
        assert_eq!(raw("/elsewhere/a%20b", "/a b"), "/a%20b");
        assert_eq!(raw("/cgi-bin/relay.cgi/other", "/a b"), "/a%20b");
    }

    #[test]
    fn an_answer_without_length_is_one_that_lighttpd_alone_has_refused() {
        assert_eq!(refused_by_lighttpd("lighttpd/1.4.69", "411"), Some(411));
        for (server, status) in [("lighttpd/1.4.69", "200"), ("lighttpd/1.4.69", ""), ("Apache/2.4", "411")] {
            assert_eq!(refused_by_lighttpd(server, status), None, "{server} {status}");
        }
        let path = |uri, path_info| answer_without_length(uri, "/cgi-bin/relay.cgi", path_info);
        let answer = "/cgi-bin/relay.cgi/7ZSFUKGV/http_response/0ab";
        assert_eq!(path(answer, "").as_deref(), Some("/7ZSFUKGV/http_response/0ab"));
        // In chunks.
        assert_eq!(path(answer, "/7ZSFUKGV/http_response/0ab"), None);
        for uri in ["", "/x", "/cgi-bin/relay.cgi/7ZSFUKGV/http_response/../../bus/x"] {
            assert_eq!(path(uri, ""), None, "{uri}");
        }
    }

    #[test]
    fn a_script_is_nph_by_its_own_name_only() {
        assert!(is_nph("/cgi-bin/nph-relay.cgi"));
        assert!(!is_nph("/nph-bin/relay.cgi"));
        assert!(!is_nph(""));
    }
}
