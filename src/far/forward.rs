//! Answers of another HTTP server, which stands where the far end can reach it.

use super::answer::Answer;
use crate::ptth::{Fields, METHOD_FIELD, Method, RequestHead, ResponseHead, StatusCode};
use std::io;
use std::net::IpAddr;
use std::time::Duration;
use ureq::config::AutoHeaderValue;
use ureq::http::Request;
use ureq::{Agent, Error};

/// How long it may take to begin its answer, and between two parts of it.
const BEGIN_TIME: Duration = Duration::from_secs(60);
const READ_TIME: Duration = Duration::from_secs(600);

/// The other server.
#[derive(Clone, Debug)]
pub struct Target {
    /// Scheme and host.
    origin: String,
    /// What stands before every path; empty, or beginning with `/`.
    base: String,
    authority: Authority,
    agent: Agent,
}

/// Host and port of a URL, so that those of one server are equal however they are written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Authority {
    host: String,
    /// `None` for that of HTTP and for that of HTTPS: an application may believe itself behind the one or the other.
    port: Option<u16>,
}

impl Authority {
    /// `None` for what is none, or names a user too.
    fn new(text: &str) -> Option<Self> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, "")) => (host, None),
            Some((host, port)) if !port.contains(']') => (host, Some(port.parse().ok()?)),
            _ => (text, None),
        };
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        if host.is_empty() || host.contains('@') {
            return None;
        }
        // No client can mean its own machine by any of them.
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        let is_loopback = host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback());
        let host = if is_loopback { "localhost".to_owned() } else { host };
        Some(Self { host, port: port.filter(|port| ![80, 443].contains(port)) })
    }

    /// That of a URL of HTTP with or without its scheme, and what stands after it; `None` for other URLs and for what is
    /// relative to a host.
    fn of_url(url: &str) -> Option<(Self, &str)> {
        let rest = ["http:", "https:", ""].into_iter().find_map(|scheme| {
            let start = url.get(..scheme.len())?;
            let rest = start.eq_ignore_ascii_case(scheme).then(|| &url[scheme.len()..])?;
            rest.strip_prefix("//")
        })?;
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len()));
        Some((Self::new(authority)?, path))
    }
}

impl Target {
    /// Behind this URL, whose path stands before the path of every request. `None` where it is no URL of an HTTP server.
    #[must_use]
    pub fn new(url: &str) -> Option<Self> {
        let url = url.trim_end_matches('/');
        let parsed: ureq::http::Uri = url.parse().ok()?;
        parsed.host()?;
        if !matches!(parsed.scheme_str(), Some("http" | "https")) || parsed.query().is_some() {
            return None;
        }
        let base = parsed.path().trim_end_matches('/').to_owned();
        let origin = url.strip_suffix(&base)?.to_owned();
        let authority = Authority::of_url(url)?.0;
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // The request goes on as the client has made it.
            .user_agent(AutoHeaderValue::None)
            .accept(AutoHeaderValue::None)
            .accept_encoding(AutoHeaderValue::None)
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(BEGIN_TIME))
            .timeout_per_read(Some(READ_TIME))
            .timeout_per_write(Some(BEGIN_TIME))
            .max_idle_age(Duration::from_secs(3))
            // It is near, whatever stands in the environment.
            .proxy(None)
            .build()
            .into();
        Some(Self { origin, base, authority, agent })
    }

    pub(super) fn answer(&self, request: &RequestHead) -> Answer {
        if !request.uri.starts_with('/') {
            return Answer::sentence(400, "The path of a request begins with a slash.");
        }
        if !self.base.is_empty() && leads_up(&request.uri) {
            return Answer::sentence(400, "A path with .. in it may lead to what is not to be reached here.");
        }
        let mut fields = request.fields.clone();
        fields.remove_hop_by_hop();
        // The target's own name comes instead; and the relay passes no body on.
        for other in ["host", "content-length", "expect", &METHOD_FIELD.to_ascii_lowercase()] {
            fields.remove(other);
        }
        let mut call = Request::builder()
            .method(request.method_name())
            .uri(format!("{}{}{}", self.origin, self.base, request.uri));
        for (name, value) in fields.iter() {
            call = call.header(name, value);
        }
        let Ok(call) = call.body(()) else {
            return Answer::sentence(400, "This request cannot be passed on.");
        };
        match self.agent.run(call) {
            Ok(answer) => self.pass_on(request, answer),
            Err(Error::Timeout(_)) => Answer::sentence(504, "The application of the far end does not answer in time."),
            Err(error) => {
                say!("uhst-relay: {}{} cannot be reached: {error}", self.origin, self.base);
                Answer::sentence(502, "The application of the far end cannot be reached.")
            }
        }
    }

    fn pass_on(&self, request: &RequestHead, answer: ureq::http::Response<ureq::Body>) -> Answer {
        let Some(status) = StatusCode::new(answer.status().as_u16()) else {
            return Answer::sentence(502, "The application of the far end gives no answer that can be passed on.");
        };
        let (head, body) = answer.into_parts();
        let mut fields = Fields::default();
        for (name, value) in &head.headers {
            let moved =
                std::str::from_utf8(value.as_bytes()).ok().and_then(|text| self.moved(name.as_str(), text, request));
            let value = moved.map_or_else(|| value.as_bytes().to_vec(), String::into_bytes);
            if fields.add(name.as_str(), &value).is_err() {
                return Answer::sentence(502, "The application of the far end gives no answer that can be passed on.");
            }
        }
        fields.remove_hop_by_hop();
        if request.method == Method::Head || matches!(status.code(), 204 | 304) {
            let head = ResponseHead { status, fields };
            return Answer { head, length: Some(0), body: Box::new(io::empty()) };
        }
        let length = body.content_length();
        if length.is_none() {
            // Beside chunks it means nothing, whatever it says (RFC 9112, 6.3).
            fields.remove("content-length");
        }
        Answer { head: ResponseHead { status, fields }, length, body: Box::new(body.into_reader()) }
    }

    /// A header field that carries a URL of the target, or a path there, as the client can follow it; `None` where it stays
    /// as it is.
    fn moved(&self, name: &str, value: &str, request: &RequestHead) -> Option<String> {
        let moved = |url: &str| self.relative(url, request);
        match name {
            "location" | "content-location" | "sourcemap" | "x-sourcemap" => moved(value),
            "refresh" => moved_refresh(value, moved),
            "link" => Some(moved_links(value, moved)),
            "set-cookie" => self.cookie(value),
            _ => None,
        }
    }

    /// A URL of the target: relative to the request, because the client knows the target under another address. `None` for
    /// one of another server, or that is relative already.
    fn relative(&self, url: &str, request: &RequestHead) -> Option<String> {
        let path = match Authority::of_url(url) {
            Some((authority, path)) if authority == self.authority => path,
            // The relay's own, which an application may have taken for its own. But it may know its way there, too.
            Some((authority, path)) => {
                let public = request.fields.get("x-forwarded-host").and_then(Authority::new);
                Some(path).filter(|path| public == Some(authority) && !path.contains("/frontend/servers/"))?
            }
            None => Some(url).filter(|url| url.starts_with('/') && !url.starts_with("//"))?,
        };
        let below = path.strip_prefix(&self.base)?;
        let below = match below.strip_prefix('/') {
            Some(below) => below,
            None if below.is_empty() || below.starts_with(['?', '#']) => below,
            None => return None,
        };
        let folders = request.uri.split(['?', '#']).next().unwrap_or_default().matches('/').count() - 1;
        Some(if folders == 0 { format!("./{below}") } else { format!("{}{below}", "../".repeat(folders)) })
    }

    /// A cookie whose path is one of the target's: the relay puts it below the server's own.
    fn cookie(&self, cookie: &str) -> Option<String> {
        let is_below = |path: &str, folder: &str| {
            path.strip_prefix(folder.trim_end_matches('/')).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let moved = |part: &str| {
            let (name, path) = part.split_once('=').unwrap_or((part, ""));
            let path = path.trim();
            if !name.trim().eq_ignore_ascii_case("path") || !path.starts_with('/') {
                return part.to_owned();
            }
            if is_below(&self.base, path) {
                return format!("{name}=/");
            }
            if is_below(path, &self.base) { format!("{name}={}", &path[self.base.len()..]) } else { part.to_owned() }
        };
        let (pair, attributes) = cookie.split_once(';')?;
        let attributes: Vec<_> = attributes.split(';').map(moved).collect();
        Some(format!("{pair};{}", attributes.join(";")))
    }
}

/// `Refresh`, as browsers read it: seconds, and the URL, with or without quotes (WHATWG HTML, 4.2.5.3).
fn moved_refresh(value: &str, moved: impl Fn(&str) -> Option<String>) -> Option<String> {
    let (seconds, rest) = value.split_at(value.find([';', ','])?);
    let rest = rest[1..].trim();
    let named = rest
        .get(..3)
        .filter(|name| name.eq_ignore_ascii_case("url"))
        .and_then(|_| rest[3..].trim_start().strip_prefix('='));
    let url = named.unwrap_or(rest).trim_start();
    let url = match url.strip_prefix(['"', '\'']) {
        Some(quoted) => quoted.split(&url[..1]).next().unwrap_or_default(),
        None => url,
    };
    moved(url).map(|url| format!("{seconds}; url={url}"))
}

/// `Link`, whose URLs stand in angle brackets (RFC 8288, 3).
fn moved_links(value: &str, moved: impl Fn(&str) -> Option<String>) -> String {
    let (mut links, mut rest) = (String::new(), value);
    while let Some(at) = rest.find(['<', '"']) {
        let (before, begun) = rest.split_at(at);
        let end = if begun.starts_with('<') { '>' } else { '"' };
        let Some(length) = begun[1..].find(end) else { break };
        let (inside, behind) = (&begun[1..=length], &begun[length + 2..]);
        let url = Some(inside).filter(|_| end == '>').and_then(&moved);
        links = links + before + &begun[..1] + url.as_deref().unwrap_or(inside);
        links.push(end);
        rest = behind;
    }
    links + rest
}

/// Whether a part of the path is `..`, as any server may read it: percent-decoded, with backslashes as slashes, and with
/// parameters after a semicolon.
fn leads_up(uri: &str) -> bool {
    let path = urlencoding::decode_binary(uri.split(['?', '#']).next().unwrap_or_default().as_bytes());
    path.split(|byte| b"/\\".contains(byte)).any(|part| part == b".." || part.starts_with(b"..;"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(uri: &str) -> RequestHead {
        let mut fields = Fields::default();
        fields.add("x-forwarded-host", b"relay.example:8080").unwrap();
        RequestHead { method: Method::Get, uri: uri.to_owned(), fields }
    }

    #[test]
    fn a_redirect_of_the_target_to_itself_stays_behind_the_relay() {
        let target = Target::new("http://127.0.0.1:3000/app/").unwrap();
        for (location, uri, seen) in [
            ("http://127.0.0.1:3000/app/login?x=1", "/", Some("./login?x=1")),
            ("//127.0.0.1:3000/app/login", "/", Some("./login")),
            ("HTTPS://LocalHost:3000/app/login", "/", Some("./login")),
            ("http://[::1]:3000/app/login", "/a/", Some("../login")),
            ("http://127.0.0.1:3000/app", "/a/b", Some("../")),
            ("/app?x", "/a", Some("./?x")),
            ("/app/login", "/a/b/c?/d/", Some("../../login")),
            ("/app/", "/a/b", Some("../")),
            ("/app//other/x", "/a", Some(".//other/x")),
            ("https://relay.example:8080/app/login", "/a", Some("./login")),
            ("https://relay.example:8080/relay.cgi/frontend/servers/n/app/login", "/a", None),
            ("login", "/a", None),
            ("", "/a", None),
            ("//", "/a", None),
            ("//other/app/x", "/a", None),
            ("///app/x", "/a", None),
            ("https://example.org/app/x", "/a", None),
            ("http://127.0.0.1:30000/app/x", "/a", None),
            ("http://127.0.0.1:3000@example.org/app/x", "/a", None),
            ("http://127.0.0.1:3000.example.org/app/x", "/a", None),
            ("http://127.0.0.1/app/x", "/a", None),
            ("mailto:a@127.0.0.1:3000/app", "/a", None),
            ("/apple", "/a", None),
            ("http://127.0.0.1:3000/other", "/a", None),
        ] {
            assert_eq!(target.relative(location, &asked(uri)).as_deref(), seen, "{location} of {uri}");
        }
        let whole = Target::new("http://localhost:3000").unwrap();
        assert_eq!(whole.relative("http://localhost:3000", &asked("/a/b")).as_deref(), Some("../"));
        assert_eq!(whole.relative("/x", &asked("/a")).as_deref(), Some("./x"));
        let default = Target::new("http://web.example").unwrap();
        for url in ["http://web.example:80/x", "https://WEB.example./x", "//web.example/x"] {
            assert_eq!(default.relative(url, &asked("/a")).as_deref(), Some("./x"), "{url}");
        }
        assert_eq!(default.relative("//web.example:81/x", &asked("/a")), None);
    }

    #[test]
    fn every_field_with_a_url_of_the_target_stays_behind_the_relay() {
        let target = Target::new("http://127.0.0.1:3000/app").unwrap();
        for (name, value, seen) in [
            ("content-location", "/app/x", Some("../x")),
            ("sourcemap", "http://127.0.0.1:3000/app/x.map", Some("../x.map")),
            ("refresh", "5; url=http://127.0.0.1:3000/app/x", Some("5; url=../x")),
            ("refresh", "0;URL = '/app/x;y' ", Some("0; url=../x;y")),
            ("refresh", "1,\"//127.0.0.1:3000/app/x\"", Some("1; url=../x")),
            ("refresh", "5", None),
            ("refresh", "5; url=https://example.org/", None),
            (
                "link",
                "</app/a,b>; rel=next, <https://example.org/app/>; title=\"</app/c>\", <//127.0.0.1:3000/app/d>",
                Some("<../a,b>; rel=next, <https://example.org/app/>; title=\"</app/c>\", <../d>"),
            ),
            ("link", "</app/a", Some("</app/a")),
            ("set-cookie", "a=/app; Path=/app/x; HttpOnly", Some("a=/app; Path=/x; HttpOnly")),
            ("set-cookie", "a=b; path = /app", Some("a=b; path =/")),
            ("set-cookie", "a=b; Path=/app/", Some("a=b; Path=/")),
            ("set-cookie", "a=b; Path=/; Secure", Some("a=b; Path=/; Secure")),
            ("set-cookie", "a=b; Path=/apple; Path", Some("a=b; Path=/apple; Path")),
            ("set-cookie", "a=b", None),
            ("x-own", "/app/x", None),
        ] {
            assert_eq!(target.moved(name, value, &asked("/a/b")).as_deref(), seen, "{name}: {value}");
        }
    }

    #[test]
    fn a_path_that_leads_up_is_known_however_it_is_written() {
        for uri in [
            "/..",
            "/../",
            "/a/../../b?q",
            "/%2e%2E/b",
            "/.%2e/b",
            "/..%2fb",
            "/a%2F..%2Fb",
            "/a%5c..%5cb",
            "/a\\..",
            "/..;x=1/b",
            "/..%3bx/b",
            "/..#",
        ] {
            assert!(leads_up(uri), "{uri}");
        }
        for uri in ["/", "/a..b/...", "/..a", "/a/.", "/a?/../b", "/%252e%252e/", "/..%00"] {
            assert!(!leads_up(uri), "{uri}");
        }
    }

    #[test]
    fn only_a_url_of_an_http_server_is_a_target() {
        for url in ["", "localhost:3000", "/x", "ftp://a", "http://", "http://a/?b", "http://a b"] {
            assert!(Target::new(url).is_none(), "{url}");
        }
    }
}
