//! The pages of `deploy/examples`, and the script that lets the published client survive: what a person meets first.

use std::fs;
use std::path::PathBuf;

use crate::door::Door;
use crate::place::{Folder, have, repository, set_mode, skip, write_settings};
use crate::relay::Relay as _;
use crate::serve::Serve;
use crate::web::{passes, passes_in_a_browser};

/// How long a stream that has ended may stay away unnoticed: longer than any of these tests makes it.
const GRACE: (&str, &str) = ("RELAY_GRACE", "60");

const EXAMPLES: [&str; 4] = ["chat.html", "drop.html", "uhst.html", "resume.js"];

fn example(name: &str) -> PathBuf {
    repository().join("deploy/examples").join(name)
}

/// The chat, the files and the host with its guests, in Chromium: see `tests/browser/examples.mjs`.
pub fn of_serve_work_in_a_browser() {
    let relay = Serve::new();
    passes_in_a_browser("examples.mjs", &[&format!("{}/", relay.url())]);
}

/// The same pages, uploaded to a web site with the relay in its `cgi-bin`.
pub fn beside_a_cgi_program_work_in_a_browser() {
    let Some(relay) = Door::ApacheEvent.server(&[]) else { return };
    let library = repository().join("tests/browser/node_modules/uhst/uhst.min.js");
    if !library.is_file() {
        return skip("the npm packages are not there: `npm ci` in tests/browser, or `tests/run`, installs them");
    }
    for file in EXAMPLES.into_iter().map(example).chain([library]) {
        let target = relay.folder().join(file.file_name().unwrap());
        fs::copy(file, &target).unwrap();
        set_mode(&target, 0o644);
    }
    let pages = relay.url().replace("cgi-bin/relay.cgi", "");
    passes_in_a_browser("examples.mjs", &[&relay.url(), &pages]);
}

/// The picture at the top of the README is there, and can be made again whenever the chat looks different.
pub fn the_picture_of_the_readme_can_be_made_again() {
    let is_a_picture = |path: &std::path::Path| {
        let picture = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // RFC 2083: the signature, then the first chunk, which begins with the width.
        let is_wide = picture.get(16..20) == Some(&1200u32.to_be_bytes()[..]);
        let (path, size) = (path.display(), picture.len());
        assert!(picture.starts_with(b"\x89PNG") && is_wide && size < 150_000, "{path}: {size} bytes");
    };
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    assert!(readme.contains("](deploy/examples/chat.png)"));
    is_a_picture(&example("chat.png"));
    let shots = repository().join("target/screenshots");
    fs::create_dir_all(&shots).unwrap();
    let again = shots.join("chat.png");
    let _ = fs::remove_file(&again);
    let relay = Serve::new();
    passes_in_a_browser("picture.mjs", &[&format!("{}/", relay.url()), again.to_str().unwrap()]);
    // Without a browser the test has been skipped.
    if have("chromium") && have("node") && repository().join("tests/browser/node_modules").is_dir() {
        is_a_picture(&again);
    }
}

/// What `resume.js` is run against: `serve` in a data folder of its own, and a CGI program's streams.
fn serve_of_its_own(folder: &Folder) -> [String; 3] {
    let data = folder.join("data");
    write_settings(&data, &[GRACE], None);
    ["serve", env!("CARGO_BIN_EXE_uhst-relay"), data.to_str().unwrap()].map(str::to_owned)
}

/// A thousand messages each way through ten kills of the relay: see `tests/client/resume.cjs`. On Node.
#[test]
fn the_published_client_survives_kills_of_serve() {
    if !have("setpriv") {
        return skip("setpriv is not installed");
    }
    let folder = Folder::new();
    let serve = serve_of_its_own(&folder);
    passes("tests/client", "resume.cjs", &serve.each_ref().map(String::as_str));
}

/// The same, while the CGI programs that feed the streams are killed.
#[test]
fn the_published_client_survives_kills_of_its_cgi_streams() {
    let Some(relay) = Door::ApacheEvent.server(&[GRACE]) else { return };
    passes("tests/client", "resume.cjs", &["cgi", &relay.url(), relay.folder().path().to_str().unwrap()]);
}

/// Both with the `EventSource` of Chromium: see `tests/browser/resume.mjs`.
pub fn the_published_client_survives_in_a_browser() {
    let Some(relay) = Door::ApacheEvent.server(&[GRACE]) else { return };
    let folder = Folder::new();
    let [serve, program, data] = &serve_of_its_own(&folder);
    let cgi = relay.folder().path().to_str().unwrap();
    passes_in_a_browser("resume.mjs", &[serve, program, data, "--", "cgi", &relay.url(), cgi]);
}

/// The top level of the repository as its user drew it.
#[test]
fn the_top_level_has_the_folders_that_its_user_drew() {
    let mut folders: Vec<_> = fs::read_dir(repository())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.') && name != "target")
        .collect();
    folders.sort();
    assert_eq!(folders, ["data", "deploy", "src", "tests"]);
}

/// One source: what a reader is shown is what the pages do. It stands in the README, or in the manual of its protocol.
#[test]
fn the_readme_shows_the_code_of_the_pages() {
    let manuals = fs::read_dir(repository().join("src/protocol")).unwrap().map(|entry| entry.unwrap().path());
    let manuals = manuals.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let shown: String =
        manuals.chain([repository().join("README.md")]).map(|path| fs::read_to_string(path).unwrap()).collect();
    for page in ["chat.html", "drop.html", "uhst.html"] {
        let source = fs::read_to_string(example(page)).unwrap();
        let snippet =
            source.split_once("// snippet: begin\n").and_then(|(_, rest)| rest.split_once("// snippet: end\n"));
        let (snippet, _) = snippet.unwrap_or_else(|| panic!("{page} marks no snippet"));
        assert!(snippet.lines().count() > 10, "{page}: {snippet}");
        assert!(
            shown.contains(&format!("```js\n{snippet}```\n")),
            "neither README.md nor a manual shows, in a block of its own, what is between the marks of {page}:\n{snippet}"
        );
    }
}
