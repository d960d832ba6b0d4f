//! Answers of another HTTP server, which stands where the far end can reach it.

use super::Answer;
use crate::ptth::{Fields, Method, RequestHead, ResponseHead, StatusCode};
use std::io;
use std::time::Duration;
use ureq::config::AutoHeaderValue;
use ureq::http::Request;
use ureq::{Agent, Error};

/// How long it may take to begin its answer, and between two parts of it.
const BEGIN_TIME: Duration = Duration::from_secs(60);
const READ_TIME: Duration = Duration::from_secs(600);

/// The other server.
pub struct Target {
    /// Scheme and host.
    origin: String,
    /// What stands before every path; empty, or beginning with `/`.
    base: String,
    agent: Agent,
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
        Some(Self { origin, base, agent })
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
        for other in ["host", "content-length", "expect"] {
            fields.remove(other);
        }
        let mut call = Request::builder()
            .method(request.method.name())
            .uri(format!("{}{}{}", self.origin, self.base, request.uri));
        for (name, value) in fields.iter() {
            call = call.header(name, value);
        }
        let Ok(call) = call.body(()) else {
            return Answer::sentence(400, "This request cannot be passed on.");
        };
        match self.agent.run(call) {
            Ok(answer) => self.pass_on(request, answer),
            Err(Error::Timeout(_)) => Answer::sentence(504, "The server behind the far end does not answer in time."),
            Err(error) => {
                say!("uhst-relay: {}{} cannot be reached: {error}", self.origin, self.base);
                Answer::sentence(502, "The server behind the far end cannot be reached.")
            }
        }
    }

    fn pass_on(&self, request: &RequestHead, answer: ureq::http::Response<ureq::Body>) -> Answer {
        let Some(status) = StatusCode::new(answer.status().as_u16()) else {
            return Answer::sentence(502, "The server behind the far end gives no answer that can be passed on.");
        };
        let (head, body) = answer.into_parts();
        let mut fields = Fields::default();
        for (name, value) in &head.headers {
            let moved = (name == "location").then(|| self.location(value.to_str().unwrap_or_default(), &request.uri));
            let value = moved.flatten().map_or_else(|| value.as_bytes().to_vec(), String::into_bytes);
            if fields.add(name.as_str(), &value).is_err() {
                return Answer::sentence(502, "The server behind the far end gives no answer that can be passed on.");
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

    /// A redirect of the target to itself, as the client can follow it: relative to the request, because the client knows
    /// the target under another address. `None` for one to somewhere else, or that is relative already.
    fn location(&self, location: &str, uri: &str) -> Option<String> {
        let path = match location.strip_prefix(&self.origin) {
            Some("") => "/",
            Some(path) => path,
            None if location.starts_with("//") => return None,
            None => location,
        };
        let path = path.strip_prefix(&self.base)?.strip_prefix('/')?;
        let folders = uri.split(['?', '#']).next().unwrap_or_default().matches('/').count() - 1;
        Some(if folders == 0 { format!("./{path}") } else { format!("{}{path}", "../".repeat(folders)) })
    }
}

/// Whether a part of the path is `..`, as any server may read it: percent-decoded, with backslashes as slashes, and with
/// parameters behind a semicolon.
fn leads_up(uri: &str) -> bool {
    let path = urlencoding::decode_binary(uri.split(['?', '#']).next().unwrap_or_default().as_bytes());
    path.split(|byte| b"/\\".contains(byte)).any(|part| part == b".." || part.starts_with(b"..;"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_of_the_target_to_itself_stays_behind_the_relay() {
        let target = Target::new("http://127.0.0.1:3000/app/").unwrap();
        for (location, uri, seen) in [
            ("http://127.0.0.1:3000/app/login?x=1", "/", Some("./login?x=1")),
            ("/app/login", "/a/b/c?/d/", Some("../../login")),
            ("/app/", "/a/b", Some("../")),
            ("login", "/a", None),
            ("//other/app/x", "/a", None),
            ("https://example.org/app/x", "/a", None),
            ("http://127.0.0.1:30000/app/x", "/a", None),
            ("/apple", "/a", None),
        ] {
            assert_eq!(target.location(location, uri).as_deref(), seen, "{location} of {uri}");
        }
        let whole = Target::new("http://localhost:3000").unwrap();
        assert_eq!(whole.location("http://localhost:3000", "/a/b").as_deref(), Some("../"));
        assert_eq!(whole.location("/x", "/a").as_deref(), Some("./x"));
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
