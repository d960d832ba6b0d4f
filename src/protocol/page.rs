//! The pages for people: what a browser shows that opens the relay's URL, and the applications that are behind it.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /` of a browser | the relay's own page, filled in with the [health list](health) |
//! | `GET /?page=chat`, `GET /?page=drop` | `deploy/examples/chat.html` and `drop.html`, as they are there |
//!
//! Each is one file without any other. It loads nothing and talks to nobody but the relay itself, and its
//! Content-Security-Policy holds it to that.

use super::query::Query;
use crate::config::{SettingError, Settings};
use crate::gateway::{Content, Reply, Request, Status};
use crate::health::{self, Check, Outcome};
use crate::store::queue::now_ms;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
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
    Some(page((*html).to_owned(), &policy(html)))
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
pub fn answer(settings: Result<&Settings, &SettingError>) -> Reply {
    page(fill(&health::look(settings), now_ms()), &policy(PAGE))
}

fn page(html: String, policy: &str) -> Reply {
    Reply { content: Content::Whole(html.into_bytes()), ..Reply::empty(Status::Ok) }
        .header("Content-Type", "text/html; charset=utf-8")
        .header("Cache-Control", "no-store")
        .header("Content-Security-Policy", policy)
        .header("Referrer-Policy", "no-referrer")
        .header("X-Content-Type-Options", "nosniff")
}

fn fill(list: &[Check], now: u64) -> String {
    let (class, mark, summary) = if list.iter().all(Check::is_ok) {
        ("ok", "good", "This relay is healthy.")
    } else {
        ("bad", "wrong", "This relay has a problem.")
    };
    let summary = format!(
        "<p id=\"summary\" class=\"{class}\" data-now=\"{now}\"><svg aria-hidden=\"true\"><use href=\"#{mark}\"/></svg>\
         <span>{summary}</span></p>"
    );
    PAGE.replacen("<!-- summary -->", &summary, 1).replacen("<!-- health -->", &items(list), 1)
}

fn items(list: &[Check]) -> String {
    let mut html = String::new();
    for Check { name, sentence, outcome } in list {
        let (class, mark, word, cure) = match outcome {
            Outcome::Ok => ("ok", "good", "Fine", String::new()),
            Outcome::Problem { cure } => ("bad", "wrong", "Problem", format!("<p class=\"cure\">{}</p>", text(cure))),
        };
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

/// Text as HTML, in an element or between double quotes.
pub(super) fn escape(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            c => html.push(c),
        }
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
    use crate::gateway::{Body, Client};

    fn is_page(method: &str, query: &str, accept: Option<&str>) -> bool {
        with_request(method, query, accept, is_asked_for)
    }

    fn with_request(method: &str, query: &str, accept: Option<&str>, ask: impl FnOnce(&Request<'_>) -> bool) -> bool {
        ask(&Request {
            method: method.to_owned(),
            path: String::new(),
            raw_path: String::new(),
            query: query.into(),
            header: &|name| accept.filter(|_| name == "accept").map(str::to_owned),
            headers: &Vec::new,
            mount: String::new(),
            remote: None,
            is_https: false,
            can_upgrade: false,
            client: Client::new(rustix::stdio::stdout(), false),
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
        let page = fill(&[bad], 17);
        assert!(page.contains("This relay has a problem."));
        assert!(page.contains("<h3>Disk &amp; &lt;b&gt;</h3><p>&quot;quoted&quot;</p>"));
        assert!(page.contains("<p class=\"cure\">Run <code>a &gt; b</code>, then <code>c</code>.</p>"));
        assert!(page.contains("data-now=\"17\""));
        assert!(!page.contains("<!--"), "something was not filled in");
    }

    #[test]
    fn all_is_well_when_every_check_is_passed() {
        let page = fill(&[], 0);
        assert!(page.contains("This relay is healthy.") && !page.contains("has a problem"));
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
