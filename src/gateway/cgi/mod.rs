//! The door of a web server: RFC 3875, a process a request.

mod input;
mod output;
mod splice;

use super::application::Application;
use super::body::{BODY_TIME, Body};
use super::client::run_blocking;
use super::forwarded::Asker;
use super::reply::{Content, Reply};
use super::request::Request;
use super::status::Status;
use super::stop::{catch_signals, stop_signal};
use crate::config::{SettingError, Settings, TrustedProxies};
use crate::syntax::digits;
use input::{End, Input};
use output::{Output, Work};
use rustix::stdio::{stdin, stdout};
use std::ffi::OsString;
use std::io::{self, Write};
use std::net::{IpAddr, Shutdown};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

/// Has the application answer the one request that this process was started for.
#[must_use]
pub fn run(application: &'static dyn Application) -> ExitCode {
    hush_shared_stderr();
    crate::log::hear_panics();
    // The process ends with this one answer.
    let settings = Settings::read(None, |program_folder| program_folder.join("data"))
        .map(|settings| &*Box::leak(Box::new(settings)));
    let head_only = text("REQUEST_METHOD") == "HEAD";
    let (reply, was_asked) = run_blocking(answer(application, &settings));
    let work = settings.as_ref().ok().map(|settings| Work { application, settings });
    let has_work = || was_asked && work.is_some_and(|work| application.has_work(work.settings));
    // Only a stream may last for so long that there is work by its end which there was not at its beginning.
    let is_stream = !head_only && !matches!(reply.content, Content::Whole(_) | Content::Absent);
    let works = !is_stream && has_work();
    if works {
        // lighttpd and Apache send SIGTERM as soon as they have the whole answer, which its length may tell: what comes after
        // it would never be finished.
        let _ = catch_signals(true);
    }
    if let Err(error) = run_blocking(send(reply, head_only, work)) {
        // The web server or its client has gone. Streams have noticed by themselves.
        say!("uhst-relay: the answer could not be written: {error}");
    }

    // Before stderr is closed for that work, or the process ends.
    crate::log::flush();
    if stop_signal().is_some()
        && (works || (is_stream && has_work()))
        && let Some(work) = work
    {
        work_unheard(work);
    }
    ExitCode::SUCCESS
}

/// The application's answer to the request, or its refusal; and whether it was asked at all.
async fn answer(
    application: &'static dyn Application,
    settings: &Result<&'static Settings, SettingError>,
) -> (Reply, bool) {
    let fields = header_fields();
    let header = |name: &str| fields.iter().find(|field| field.0 == name).map(|field| field.1.clone());
    let asker = asker(settings, &fields);
    let mount = text("SCRIPT_NAME");
    let path = variable("PATH_INFO").unwrap_or_default().into_string();
    let path_is_text = path.is_ok();
    let body = body();
    let (length, end) = body.unwrap_or((None, End::After(0)));
    let mut client = Output::new(stdout(), false, None);
    let mut request = Request {
        method: text("REQUEST_METHOD"),
        raw_path: raw_path(&text("REQUEST_URI"), &mount, &text("PATH_INFO")),
        path: path.unwrap_or_default(),
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
        // RFC 3875 knows none: a web server would take them for the end of the body.
        takes_trailers: false,
        client: &mut client,
        body: Body { length, is_awaited: true, reader: &mut Input::new(stdin(), end) },
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
        None if body.is_none() => Some((Status::BadRequest, "CONTENT_LENGTH is not a number.")),
        None if !path_is_text => Some((Status::BadRequest, "The path is not UTF-8.")),
        None => None,
    };
    let reply = match (settings, wrong) {
        (Err(error), _) => {
            say!("uhst-relay: {error}");
            application.answer_without_settings(error, &request)
        }
        (Ok(settings), Some((status, sentence))) => {
            application.refuse(settings, &request, Reply::error(status, sentence))
        }
        (Ok(settings), None) => application.answer(settings, &mut request).await,
    };
    if !matches!(reply.content, Content::Upgrade(_)) {
        leave_nothing_unread(&mut request.body).await;
    }
    (reply, wrong.is_none())
}

/// The body's length, where that is known, and its end; nothing where what should say so is no number.
///
/// RFC 3875, 4.1.2: without `CONTENT_LENGTH` there is no body, except that servers which take the chunks out of a chunked
/// body leave its name behind; its end is then the end of the input.
fn body() -> Option<(Option<u64>, End)> {
    let length = text("CONTENT_LENGTH");
    if !length.is_empty() {
        return digits(length.as_bytes()).map(|length| (Some(length), End::After(length)));
    }
    let end = if !text("HTTP_TRANSFER_ENCODING").is_empty() {
        End::OfInput
    } else if text("SERVER_PROTOCOL") == "HTTP/1.0" {
        // A server that speaks HTTP/1.0 to us does not take chunks apart; a chunked message would be lost without a word.
        // RFC 1945, 7.2.2: a body must have a length then.
        End::Unseen
    } else {
        End::After(0)
    };
    Some((None, end))
}

/// Whom the request is from, as the web server tells it.
fn asker(settings: &Result<&'static Settings, SettingError>, fields: &[(String, String)]) -> Asker {
    let connection = Asker {
        address: text("REMOTE_ADDR").parse().ok().map(|address: IpAddr| address.to_canonical()),
        // What sets it is no standard; "on" (Apache, lighttpd) and "1" are usual.
        is_https: matches!(text("HTTPS").to_ascii_lowercase().as_str(), "on" | "1"),
    };
    // lighttpd has a variable of the same name for a proxy's X-Forwarded-For and for a client's own X_Forwarded_For. Where
    // there are two, it is not known who has said what.
    let header = |name: &str| {
        let mut told = fields.iter().filter(|field| field.0 == name).map(|field| field.1.clone());
        told.next().map(|value| if told.next().is_some() { "unknown".to_owned() } else { value })
    };
    match settings {
        // An address that the web server does not tell is no sign of a UNIX socket.
        Ok(settings) => connection.behind(&TrustedProxies { unix: false, ..settings.trusted_proxies.clone() }, &header),
        Err(_) => connection,
    }
}

/// Has the application work when the answer is out. The answer ends where our output ends, so nobody waits for what comes
/// now. fcgiwrap and Apache listen to stderr as well, and with `mod_cgid` stdin is the same socket.
fn work_unheard(Work { application, settings }: Work) {
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
async fn leave_nothing_unread(body: &mut Body<'_>) {
    if text("SERVER_SOFTWARE").starts_with("nginx") {
        // Its client cannot get the answer any sooner.
        body.reader.give_time(BODY_TIME);
    }
    if body.drain(u64::MAX).await {
        return;
    }
    if let Ok(input) = stdin().try_clone_to_owned().map(UnixStream::from)
        // Another kind of socket has no such address; it is the client's connection itself then.
        && input.local_addr().is_ok()
        && input.shutdown(Shutdown::Read).is_ok()
    {
        // What was sent before that; the web server's next write fails, and it drops the rest itself.
        let _ = io::copy(&mut &input, &mut io::sink());
    }
}

async fn send(reply: Reply, head_only: bool, work: Option<Work>) -> io::Result<()> {
    let mut out = Vec::with_capacity(512);
    if is_nph(&text("SCRIPT_NAME")) {
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
            write_all(&out)
        }
        Content::Absent => {
            out.extend_from_slice(b"\r\n");
            write_all(&out)
        }
        Content::Upgrade(talk) => {
            out.extend_from_slice(b"Connection: Upgrade\r\n");
            let _ = catch_signals(true);
            let input = Input::new(stdin(), End::OfInput);
            talk(Box::new(input), Box::new(Output::switching(stdout(), out, work))).await;
            Ok(())
        }
        Content::Stream(produce) | Content::Events(produce) | Content::Sized(_, produce) => {
            out.extend_from_slice(b"\r\n");
            let written = write_all(&out);
            if !head_only {
                // Without it a signal kills the stream, which its peers notice within seconds.
                let _ = catch_signals(true);
                produce(&mut Output::new(stdout(), written.is_err(), work)).await;
            }
            written
        }
    }
}

/// Past the standard library's line buffer, which would make two writes of one answer.
fn write_all(mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        bytes = &bytes[rustix::io::retry_on_intr(|| rustix::io::write(stdout(), bytes))?..];
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

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

fn text(name: &str) -> String {
    variable(name).map(|value| value.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The header fields that have come this far, in the server's order: RFC 3875, 4.1.18, and the two that have a variable of
/// their own.
fn header_fields() -> Vec<(String, String)> {
    let named = |(name, value): (OsString, OsString)| {
        let name = name.into_string().ok()?;
        let name = match name.as_str() {
            "CONTENT_TYPE" | "CONTENT_LENGTH" => &name,
            "HTTP_CONTENT_TYPE" | "HTTP_CONTENT_LENGTH" => return None,
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
    let stays = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/".contains(c);
    let encode = |c: char| urlencoding::encode(c.encode_utf8(&mut [0; 4])).into_owned();
    path.chars().map(|c| if stays(c) { c.into() } else { encode(c) }).collect()
}

fn is_nph(script_name: &str) -> bool {
    script_name.rsplit('/').next().is_some_and(|name| name.starts_with("nph-"))
}

/// The two ways of a connection that is handed over, through a socket in place of our standard input and output.
#[cfg(test)]
pub(crate) fn over(socket: &'static UnixStream) -> (Box<dyn super::Incoming>, Box<dyn super::Switching>) {
    use rustix::fd::AsFd as _;
    let input = Input::new(socket.as_fd(), End::OfInput);
    (Box::new(input), Box::new(Output::switching(socket.as_fd(), Vec::new(), None)))
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
