//! The pages for people: what a browser shows that opens the relay's URL, the applications that are behind it, and what it
//! shows in the same look of an error or a list.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /` of a browser | the relay's own page, filled in with the [health list](health) |
//! | `GET /?page=chat`, `GET /?page=drop` | `deploy/examples/chat.html` and `drop.html`, as they are there |
//!
//! Each is one file without any other. It loads nothing and talks to nobody but the relay itself and the web server that it is
//! on, and its Content-Security-Policy holds it to that.

use super::query::Query;
use crate::clock::now_ms;
use crate::config::{SettingError, Settings};
use crate::gateway::{Content, Reply, Request, Status};
use crate::health::{self, Audience, Check, Outcome};
pub(super) use crate::html::escape;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

const PAGE: &str = include_str!("page.html");

/// The applications, by the name that `?page=` has for them.
const APPLICATIONS: [(&str, &str); 2] = [
    ("chat", include_str!("../../deploy/examples/chat.html")),
    ("drop", include_str!("../../deploy/examples/drop.html")),
];

/// The application that is asked for, so that the relay's URL alone is a chat; `None` where none is.
#[must_use]
pub fn application(request: &Request<'_>) -> Option<Reply> {
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return None;
    }
    let query = Query::parse(&request.query).ok()?;
    let name = query.get("page").filter(|_| query.get("token").or(query.get("action")).is_none())?;
    let (_, html) = APPLICATIONS.iter().find(|(application, _)| *application == name)?;
    Some(self::html(Status::Ok, (*html).to_owned(), &policy(html)))
}

/// Whether this is a browser in which somebody has opened the relay's URL.
#[must_use]
pub fn is_asked_for(request: &Request<'_>) -> bool {
    matches!(request.method.as_str(), "GET" | "HEAD")
        && (request.header)("accept").is_some_and(|accept| names_html(&accept))
        && Query::parse(&request.query).is_ok_and(|query| query.get("token").or(query.get("action")).is_none())
}

/// Whether `text/html` itself is in the list of media ranges (RFC 9110, 12.5.1); `*/*` is what programs send.
pub(super) fn names_html(accept: &str) -> bool {
    accept.split(',').any(|range| {
        let media_type = range.split(';').next().unwrap_or_default();
        media_type.trim().eq_ignore_ascii_case("text/html")
    })
}

/// The page, with the health of the relay at this moment.
#[must_use]
pub async fn answer(settings: Result<&Settings, &SettingError>, request: &Request<'_>) -> Reply {
    let list = health::look(settings, Audience::Page).await;
    let program = request.mount.rsplit('/').next().unwrap_or_default();
    html(Status::Ok, fill(&list, now_ms(), WebServer::named(&request.server), program), &policy(PAGE))
}

/// The web server that the program runs under, as far as its cures are of different kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WebServer {
    Apache,
    Lighttpd,
    Nginx,
    Thttpd,
    MiniHttpd,
    /// `serve`.
    Own,
    /// One that nobody has tried yet.
    Other,
}

impl WebServer {
    /// By what it calls itself (`SERVER_SOFTWARE`).
    fn named(software: &str) -> Self {
        let name = software.split(['/', ' ']).next().unwrap_or_default().to_ascii_lowercase();
        match name.as_str() {
            // LiteSpeed is a copy of Apache in what its users see: its configuration, and `.htaccess`.
            "apache" | "litespeed" | "openlitespeed" => Self::Apache,
            "lighttpd" => Self::Lighttpd,
            "nginx" => Self::Nginx,
            "thttpd" => Self::Thttpd,
            "mini_httpd" => Self::MiniHttpd,
            "uhst-relay" => Self::Own,
            _ => Self::Other,
        }
    }

    /// As the page's script calls it.
    fn key(self) -> &'static str {
        match self {
            Self::Apache => "apache",
            Self::Lighttpd => "lighttpd",
            Self::Nginx => "nginx",
            Self::Thttpd => "thttpd",
            Self::MiniHttpd => "mini_httpd",
            Self::Own => "serve",
            Self::Other => "other",
        }
    }
}

fn fill(list: &[Check], now: u64, server: WebServer, program: &str) -> String {
    let has = |is: fn(&Outcome) -> bool| list.iter().any(|check| is(&check.outcome));
    let (class, mark, summary) = if has(|outcome| matches!(outcome, Outcome::Problem { .. })) {
        ("bad", "wrong", "This relay has a problem.")
    } else if has(|outcome| matches!(outcome, Outcome::Note { .. })) {
        ("warn", "warn", "This relay works, with a note.")
    } else {
        ("ok", "good", "This relay is healthy.")
    };
    let summary = format!(
        "<p id=\"summary\" class=\"{class}\" role=\"status\" data-now=\"{now}\" data-server=\"{}\" data-program=\"{}\">\
         <svg aria-hidden=\"true\"><use href=\"#{mark}\"/></svg><span>{summary}</span></p>",
        server.key(),
        escape(program),
    );
    // The version first: what is filled in after it could contain the mark.
    PAGE.replacen("<!-- version -->", crate::VERSION, 1).replacen("<!-- summary -->", &summary, 1).replacen(
        "<!-- health -->",
        &items(list),
        1,
    )
}

fn items(list: &[Check]) -> String {
    let mut html = String::new();
    for Check { name, sentence, outcome } in list {
        let (class, mark, word, cure) = match outcome {
            Outcome::Ok => ("ok", "good", "Fine", None),
            Outcome::Note { cure } => ("warn", "warn", "Note", Some(cure)),
            Outcome::Problem { cure } => ("bad", "wrong", "Problem", Some(cure)),
        };
        let cure = cure.map(|cure| format!("<p class=\"cure\">{}</p>", text(cure))).unwrap_or_default();
        let _ = write!(
            html,
            "<li class=\"{class}\"><svg role=\"img\" aria-label=\"{word}\"><use href=\"#{mark}\"/></svg>\
             <div><h3>{}</h3><p>{}</p>{cure}</div></li>",
            text(name),
            text(sentence),
        );
    }
    html
}

/// The same answer, for a browser in which a person sees it: an error of the relay becomes a page that says its sentence.
/// What a server behind the relay answers is not touched.
#[must_use]
pub fn for_people(request: &Request<'_>, reply: Reply) -> Reply {
    let is_error = reply.status >= Status::BadRequest && !matches!(reply.status, Status::Passed(_));
    if !is_error || !(request.header)("accept").is_some_and(|accept| names_html(&accept)) {
        return reply;
    }
    let Content::Whole(body) = &reply.content else { return reply };
    let Ok(Value::Object(said)) = serde_json::from_slice(body) else { return reply };
    let Some(Value::String(error)) = said.get("error").filter(|_| said.len() == 1) else { return reply };
    let status = reply.status.to_string();
    let main = format!(
        "<section><h2>{status}</h2><p>{}</p><p><a href=\"{}\">What this is, and whether it works</a></p></section>",
        text(error),
        way_home(&request.raw_path)
    );
    let mut page = document(reply.status, &status, &main);
    // What else the error has said: `Allow`, `Retry-After` and their like.
    let is_about_json = |name: &str| ["content-type", "cache-control"].contains(&name.to_ascii_lowercase().as_str());
    page.headers.extend(reply.headers.into_iter().filter(|(name, _)| !is_about_json(name)));
    page.header("Vary", "Accept")
}

/// A page in the look of the relay's own, without a script. `main` is HTML.
pub(super) fn document(status: Status, title: &str, main: &str) -> Reply {
    let logo = content_of(PAGE, "h1");
    let page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"robots\" content=\"noindex\">\n\
         <title>{} – UHST relay</title>\n<link rel=\"icon\" href=\"data:,\">\n<style>{}</style>\n</head>\n<body>\n\
         <header><h1>{logo}</h1></header>\n<main>{main}</main>\n</body>\n</html>\n",
        escape(title),
        content_of(PAGE, "style"),
    );
    let policy = format!(
        "default-src 'none'; style-src {}; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash_of(PAGE, "style")
    );
    html(status, page, &policy)
}

fn html(status: Status, page: String, policy: &str) -> Reply {
    Reply { content: Content::Whole(page.into_bytes()), ..Reply::empty(status) }
        .header("Content-Type", "text/html; charset=utf-8")
        .header("Cache-Control", "no-store")
        .header("Content-Security-Policy", policy)
        .header("Referrer-Policy", "no-referrer")
        .header("X-Content-Type-Options", "nosniff")
}

/// From a path after the relay's own, as the client has encoded it, to the relay, by a URL that a proxy with paths of its own
/// cannot spoil.
fn way_home(path: &str) -> String {
    match path.matches('/').count() {
        0 => "?".to_owned(),
        1 => "./".to_owned(),
        folders => "../".repeat(folders - 1),
    }
}

/// Text as HTML, with what stands between backticks as code.
fn text(text: &str) -> String {
    let mut tags = ["<code>", "</code>"].into_iter().cycle();
    let mut pieces = text.split('`').map(escape);
    let mut html = pieces.next().unwrap_or_default();
    for piece in pieces {
        html.push_str(tags.next().unwrap_or_default());
        html.push_str(&piece);
    }
    html
}

/// Nothing but the page's own style and script, by their hashes, its icon, and requests to the relay itself
/// (Content Security Policy Level 3).
fn policy(html: &str) -> String {
    format!(
        "default-src 'none'; style-src {}; script-src {}; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash_of(html, "style"),
        hash_of(html, "script")
    )
}

fn hash_of(html: &str, element: &str) -> String {
    format!("'sha256-{}'", BASE64.encode(Sha256::digest(content_of(html, element))))
}

/// What is between the tags of the page's only element of that name.
fn content_of<'h>(html: &'h str, element: &str) -> &'h str {
    let behind = html.split_once(&format!("<{element}>")).map_or("", |(_, behind)| behind);
    behind.split_once(&format!("</{element}>")).map_or("", |(content, _)| content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::{Body, Simulated};

    fn is_page(method: &str, query: &str, accept: Option<&str>) -> bool {
        with_request(method, query, accept, is_asked_for)
    }

    fn with_request(method: &str, query: &str, accept: Option<&str>, ask: impl FnOnce(&Request<'_>) -> bool) -> bool {
        with_request_to("", method, query, accept, ask)
    }

    fn with_request_to(
        raw_path: &str,
        method: &str,
        query: &str,
        accept: Option<&str>,
        ask: impl FnOnce(&Request<'_>) -> bool,
    ) -> bool {
        ask(&Request {
            method: method.to_owned(),
            path: urlencoding::decode(raw_path).unwrap().into_owned(),
            raw_path: raw_path.to_owned(),
            query: query.into(),
            header: &|name| accept.filter(|_| name == "accept").map(str::to_owned),
            headers: &Vec::new,
            mount: String::new(),
            server: String::new(),
            remote: None,
            is_https: false,
            can_upgrade: false,
            takes_trailers: false,
            client: &mut Simulated { is_there: true },
            body: Body { length: None, is_awaited: true, reader: &mut std::io::empty() },
        })
    }

    #[test]
    fn only_a_browser_that_opens_the_url_gets_the_page() {
        let browser = Some("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8");
        assert!(is_page("GET", "", browser));
        assert!(is_page("HEAD", "", browser));
        assert!(is_page("GET", "token=&utm_source=x", Some("application/json, Text/HTML;q=0.5")));
        assert!(!is_page("POST", "", browser));
        assert!(!is_page("GET", "token=x", browser));
        assert!(!is_page("GET", "action=host", browser));
        assert!(!is_page("GET", "a=%ff", browser));
        for accept in [None, Some("*/*"), Some("text/*"), Some("text/html-not"), Some("text/event-stream"), Some("")] {
            assert!(!is_page("GET", "", accept), "{accept:?}");
        }
    }

    #[test]
    fn a_problem_is_shown_with_its_cure_and_without_markup_of_its_own() {
        let bad = Check {
            name: "Disk & <b>",
            sentence: "\"quoted\"".to_owned(),
            outcome: Outcome::Problem { cure: "Run `a > b`, then `c`.".to_owned() },
        };
        let page = fill(&[bad], 17, WebServer::Nginx, "re\"lay.cgi");
        assert!(page.contains("<span>This relay has a problem.</span>"));
        assert!(page.contains("<h3>Disk &amp; &lt;b&gt;</h3><p>&quot;quoted&quot;</p>"));
        assert!(page.contains("<p class=\"cure\">Run <code>a &gt; b</code>, then <code>c</code>.</p>"));
        assert!(page.contains("data-now=\"17\" data-server=\"nginx\" data-program=\"re&quot;lay.cgi\""));
        assert!(page.contains(&format!("uhst-relay {}", crate::VERSION)));
        assert!(!page.contains("<!--"), "something was not filled in");
    }

    #[test]
    fn the_worst_of_all_checks_is_the_summary() {
        let check = |outcome: Outcome| Check { name: "A", sentence: String::new(), outcome };
        let (note, problem) = (Outcome::Note { cure: String::new() }, Outcome::Problem { cure: String::new() });
        let says = |list: &[Check], sentence: &str| {
            let page = fill(list, 0, WebServer::Other, "");
            assert!(page.contains(&format!("<span>{sentence}</span>")), "{sentence}");
        };
        says(&[], "This relay is healthy.");
        says(&[check(Outcome::Ok)], "This relay is healthy.");
        says(&[check(Outcome::Ok), check(note.clone())], "This relay works, with a note.");
        says(&[check(problem), check(note), check(Outcome::Ok)], "This relay has a problem.");
    }

    #[test]
    fn a_web_server_is_known_by_what_it_calls_itself() {
        for (software, server) in [
            ("Apache", WebServer::Apache),
            ("Apache/2.4.71 (Debian)", WebServer::Apache),
            ("LiteSpeed", WebServer::Apache),
            ("lighttpd/1.4.69", WebServer::Lighttpd),
            ("nginx/1.22.1", WebServer::Nginx),
            ("thttpd/2.29 23May2018", WebServer::Thttpd),
            ("mini_httpd/1.30 26Oct2018", WebServer::MiniHttpd),
            ("uhst-relay", WebServer::Own),
            ("Microsoft-IIS/10.0", WebServer::Other),
            ("", WebServer::Other),
        ] {
            assert_eq!(WebServer::named(software), server, "{software}");
        }
    }

    #[test]
    fn from_anywhere_there_is_a_way_home() {
        for (path, way) in [("", "?"), ("/", "./"), ("/bus", "./"), ("/bus/a", "../"), ("/cama/session/x", "../../")] {
            assert_eq!(way_home(path), way, "{path}");
        }
    }

    #[test]
    fn an_error_leads_home_from_the_url_that_the_browser_has() {
        // To a browser `%2F` is no slash.
        assert!(with_request_to("/bus/a%2Fb", "GET", "", Some("text/html"), |request| {
            let page = for_people(request, Reply::error(Status::NotFound, "There is nothing."));
            let Content::Whole(html) = page.content else { return false };
            String::from_utf8(html).unwrap().contains("<a href=\"../\">")
        }));
    }

    #[test]
    fn the_pages_need_nothing_but_themselves() {
        for (name, page) in APPLICATIONS.into_iter().chain([("the relay's own", PAGE)]) {
            for element in ["style", "script"] {
                assert!(content_of(page, element).len() > 1000, "{name}: {element}");
                assert_eq!(page.matches(&format!("<{element}")).count(), 1, "{name}: {element}");
            }
            for forbidden in ["src=", "@import", "url(", " style=", "onclick", "innerHTML"] {
                assert!(!page.contains(forbidden), "{name}: {forbidden}");
            }
            let others = page.match_indices("://").filter(|(at, _)| !page[..*at].ends_with("http")).count();
            assert_eq!(others, 0, "{name}: only the name of SVG is a URL");
            assert_eq!(page.matches("http://").count(), page.matches("http://www.w3.org/2000/svg").count(), "{name}");
        }
    }

    #[test]
    fn the_page_knows_the_file_that_nobody_else_may_see() {
        assert!(include_str!("../../data/index.html").contains("Empty on purpose"));
        assert!(PAGE.contains("\"Empty on purpose\""));
    }

    #[test]
    fn an_application_is_named_in_the_query() {
        let is_served = |method: &str, query: &str| {
            with_request(method, query, Some("*/*"), |request| application(request).is_some())
        };
        assert!(is_served("GET", "page=chat"));
        assert!(is_served("HEAD", "room=a&page=drop"));
        for (method, query) in
            [("POST", "page=chat"), ("GET", "page=other"), ("GET", "page="), ("GET", "page=chat&token=x"), ("GET", "")]
        {
            assert!(!is_served(method, query), "{method} {query}");
        }
    }
}
