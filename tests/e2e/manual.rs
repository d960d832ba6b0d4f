//! What the README and the manuals print is true: every block of commands and of JavaScript in them is run, as it stands there,
//! and says what the block of text after it says.
//!
//! Only two things are replaced: the address of the relay, by that of the test's own; and `…` in a block of text, which stands for
//! any text. A manual's blocks for a shell are one script, so a later one may use what an earlier one has set. A block of
//! JavaScript is a program of its own, in a page of another origin.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::place::{Folder, LONG, have, kill, processes_below, repository, skip, until};
use crate::relay::Relay as _;
use crate::serve::Serve;
use crate::web::passes_in_a_browser;

/// A block between two fences.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Block {
    /// What follows the first fence.
    language: String,
    text: String,
    /// The line of the first fence, from 1.
    line: usize,
}

/// What a block is expected to say: the block of text right after it.
struct Program<'a> {
    block: &'a Block,
    says: Option<&'a Block>,
}

fn blocks(manual: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in manual.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(language)) => {
                open = Some(Block { language: language.to_owned(), text: String::new(), line: number + 1 });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.text.extend([line, "\n"]),
            (None, None) => {
                assert!(!line.starts_with("    "), "line {}: a block without a fence is not run", number + 1);
            }
        }
    }
    assert!(open.is_none(), "a fence is never closed: {open:?}");
    blocks
}

/// The blocks of a language, each with the text that it is expected to say.
fn programs<'a>(blocks: &'a [Block], language: &str) -> Vec<Program<'a>> {
    let is_run = |block: &Block| matches!(block.language.as_str(), "sh" | "js");
    let mut programs = Vec::new();
    for (at, block) in blocks.iter().enumerate() {
        assert!(is_run(block) || block.language == "text", "line {}: nobody runs {}", block.line, block.language);
        if block.language == language {
            let says = blocks.get(at + 1).filter(|next| next.language == "text");
            programs.push(Program { block, says });
        }
    }
    programs
}

/// The first expected line that is not in what was said, where they stand in the same order; other lines may be between them.
fn missing<'a>(said: &str, expected: &'a str) -> Option<&'a str> {
    let mut said = said.lines();
    expected.lines().find(|expected| !said.any(|line| is_like(line, expected)))
}

/// Whether a line is as the manual has it, where `…` is any text.
fn is_like(line: &str, expected: &str) -> bool {
    let mut pieces = expected.split('…');
    let Some(mut rest) = line.strip_prefix(pieces.next().unwrap_or_default()) else { return false };
    let mut pieces = pieces.peekable();
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return rest.ends_with(piece);
        }
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.is_empty()
}

/// Runs what stands in a file of the repository for a shell.
fn runs_in_a_shell(manual: &str) {
    for program in ["bash", "curl", "openssl"] {
        if !have(program) {
            return skip(&format!("{program} is not installed"));
        }
    }
    let text = fs::read_to_string(repository().join(manual)).unwrap();
    let blocks = blocks(&text);
    let programs = programs(&blocks, "sh");
    assert!(!programs.is_empty(), "{manual} has no commands");

    let relay = Serve::new();
    let url = relay.url();
    let mut script = String::new();
    for (number, program) in programs.iter().enumerate() {
        let commands = program.block.text.replace("http://127.0.0.1:8080", url.trim_end_matches('/'));
        // Each block's words go to a file of their own, without a process of its own that would lose what it sets.
        write!(script, "exec > said.{number} 2>&1\n{commands}").unwrap();
    }
    let home = relay.folder().join("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::symlink(relay.data(), home.join("data")).unwrap();
    let binaries = Path::new(env!("CARGO_BIN_EXE_uhst-relay")).parent().unwrap();
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", binaries.display());
    let mut shell = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "bash", "-euo", "pipefail", "-c", &script])
        .current_dir(&home)
        .env_clear()
        .env("PATH", path)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut status = None;
    until(&format!("the commands of {manual} are done"), LONG, || {
        status = shell.try_wait().unwrap();
        status.is_some()
    });
    let said = |number: usize| fs::read_to_string(home.join(format!("said.{number}"))).unwrap_or_default();
    for (number, program) in programs.iter().enumerate() {
        let said = said(number);
        if let Some(line) = program.says.and_then(|says| missing(&said, &says.text)) {
            panic!("{manual}, line {}: no {line:?} in what it said: {said}", program.block.line);
        }
    }
    // A stream or a far end that a manual has started and not stopped.
    for pid in processes_below(&home) {
        kill(pid, Signal::KILL);
    }
    let last = (0..programs.len()).rev().map(said).find(|said| !said.is_empty());
    assert!(status.unwrap().success(), "{manual}: {status:?}; the last words were: {last:?}");
}

/// Runs what stands in a file of the repository for a page.
fn runs_in_a_page(manual: &str) {
    let text = fs::read_to_string(repository().join(manual)).unwrap();
    let blocks = blocks(&text);
    let programs: Vec<_> = programs(&blocks, "js")
        .iter()
        .map(|program| {
            let says = program.says.map_or("", |says| &says.text);
            json!({ "line": program.block.line, "code": program.block.text, "says": says })
        })
        .collect();
    assert!(!programs.is_empty(), "{manual} has no JavaScript");
    let relay = Serve::new();
    let file = relay.folder().join("programs.json");
    fs::write(&file, json!(programs).to_string()).unwrap();
    passes_in_a_browser("manual.mjs", &[&relay.url(), file.to_str().unwrap()]);
}

macro_rules! manuals {
    ($run:ident: $($name:ident = $path:literal,)*) => {
        pub const FILES: &[&str] = &[$($path),*];

        $( #[test] fn $name() { super::$run($path); } )*
    };
}

mod commands {
    manuals! { runs_in_a_shell:
        of_uhst = "src/protocol/uhst.md",
        of_the_bus = "src/protocol/bus.md",
        of_the_pipe = "src/protocol/cama.md",
        of_ptth = "src/protocol/ptth.md",
        of_websockets = "src/protocol/ws.md",
    }
}

pub mod browser {
    manuals! { runs_in_a_page:
        javascript_of_the_bus = "src/protocol/bus.md",
        javascript_of_the_pipe = "src/protocol/cama.md",
        javascript_of_websockets = "src/protocol/ws.md",
    }
}

fn blocks_of(file: &str) -> Vec<Block> {
    blocks(&fs::read_to_string(repository().join(file)).unwrap())
}

#[test]
fn no_manual_is_forgotten() {
    for entry in fs::read_dir(repository().join("src/protocol")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let manual = path.strip_prefix(repository()).unwrap().display().to_string();
        let blocks = blocks_of(&manual);
        for (language, run) in [("sh", commands::FILES), ("js", browser::FILES)] {
            let is_run = programs(&blocks, language).is_empty() || run.contains(&&*manual);
            assert!(is_run, "nobody runs the {language} of {manual}");
        }
    }
}

/// What the README shows of JavaScript is run where it stands: in a page of the examples, or in a manual.
#[test]
fn the_javascript_of_the_readme_is_run_elsewhere() {
    let examples = fs::read_dir(repository().join("deploy/examples")).unwrap().map(|entry| entry.unwrap().path());
    let pages = examples.filter(|path| path.extension().is_some_and(|extension| extension == "html"));
    let pages: Vec<_> = pages.map(|page| fs::read_to_string(page).unwrap()).collect();
    let manuals: Vec<_> = browser::FILES.iter().flat_map(|manual| blocks_of(manual)).collect();
    let readme = blocks_of("README.md");
    let shown = programs(&readme, "js");
    assert!(shown.len() >= 4, "README.md shows {} blocks", shown.len());
    for Program { block, .. } in shown {
        let is_run = pages.iter().any(|page| page.contains(&block.text))
            || manuals.iter().any(|other| other.language == "js" && other.text == block.text);
        assert!(is_run, "README.md, line {}: neither a page of the examples nor a manual has this", block.line);
    }
}

/// The commands of the README that are run here, as they are printed.
const TRY: &str = "cargo run --release -- serve\n";
const BUILD: &str = "cargo build --release\ntarget/release/uhst-relay --help\n";
/// This one is running at this moment.
const TEST: &str = "tests/run\n";

/// A copy of the sources, in a place that stays the same, so that the next run of this test need not build again what is
/// as it was. Its `target` is the repository's own.
fn copy_of_the_sources() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("readme");
    let _ = fs::remove_dir_all(&copy);
    fs::create_dir_all(&copy).unwrap();
    // With the times of the files, by which cargo knows what has changed.
    let tar = r#"tar c --exclude=node_modules Cargo.* build.rs src data/.htaccess data/index.html deploy tests | tar x -C "$1""#;
    let done = Command::new("sh").args(["-c", tar, "sh"]).arg(&copy).current_dir(repository()).status().unwrap();
    assert!(done.success(), "the sources cannot be copied");
    std::os::unix::fs::symlink(target, copy.join("target")).unwrap();
    copy
}

/// The README's commands, each by its own words: on a machine with Rust they lead to a relay, and to its help.
#[test]
fn the_commands_of_the_readme_do_what_they_are_for() {
    const BUILDS: Duration = Duration::from_secs(60 * 60);
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let printed = blocks(&readme);
    let printed: Vec<_> = programs(&printed, "sh").iter().map(|program| &*program.block.text).collect();
    assert_eq!(printed, [TRY, TEST, BUILD], "a command of README.md that this test does not run");
    assert!(repository().join(TEST.trim_end()).is_file());
    let (_, url) = readme.split_once("Open <").expect("the relay's address stands in README.md");
    let (url, _) = url.split_once('>').unwrap();

    for program in ["cargo", "curl", "ip", "unshare", "setpriv"] {
        if !have(program) {
            return skip(&format!("{program} is not installed"));
        }
    }
    // A network of its own, in which port 8080 is free. Only root can make one, or whoever may be root in a user namespace.
    let as_root: &[&str] = if crate::place::is_root() { &[] } else { &["--user", "--map-root-user"] };
    let network = |script: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--", "unshare", "--net"]).args(as_root);
        // Building takes minutes of a machine on which other tests measure times.
        command.args(["--", "nice", "bash", "-euc", script]).stdin(Stdio::null());
        command
    };
    let can = network("ip link set lo up").stderr(Stdio::null()).status().unwrap();
    if !can.success() {
        return skip("no network namespace can be made here");
    }

    let copy = copy_of_the_sources();
    let folder = Folder::new();
    let runs = |command: &mut Command, what: &str| {
        let log = fs::File::create(folder.join("said")).unwrap();
        command.current_dir(&copy).env_remove("CARGO_TARGET_DIR");
        let mut child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut status = None;
        until(what, BUILDS, || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        let said = fs::read_to_string(folder.join("said")).unwrap();
        assert!(status.unwrap().success(), "{what}: {said}");
        said
    };
    // The one that builds comes first: it may have to fetch something.
    let mut build = Command::new("setpriv");
    build.args(["--pdeathsig", "KILL", "--", "nice", "bash", "-euc", BUILD]).stdin(Stdio::null());
    let said = runs(&mut build, BUILD);
    assert!(said.contains("Usage: uhst-relay"), "{said}");
    // The relay is in a process group of its own (set -m), which ends with this shell.
    let script = format!(
        "ip link set lo up
        set -m
        ({TRY}) & relay=$!
        trap 'kill -- -$relay; wait' EXIT
        until curl -sf --max-time 20 -d '' '{url}?action=ping&timestamp=7'; do kill -0 $relay; sleep 0.1; done
        curl -sf --max-time 20 -H 'Accept: text/html' '{url}'"
    );
    let said = runs(&mut network(&script), TRY);
    assert!(said.contains(r#"{"pong":7}"#), "{said}");
    assert!(said.contains("This relay is healthy.") && said.contains("Open the chat"), "{said}");
}

#[test]
fn a_manual_cannot_say_what_does_not_come() {
    assert!(is_like(r#"{"user":7,"id":12}"#, r#"{"user":…,"id":…}"#));
    assert!(!is_like(r#"{"user":7}"#, r#"{"user":…,"id":…}"#));
    assert!(!is_like("[] ", "[]") && !is_like("", "[]") && is_like("[]", "[]"));
    assert_eq!(missing("a\nb\nc\n", "a\nc\n"), None);
    assert_eq!(missing("c\na\n", "a\nc\n"), Some("c"));
    let manual = "```sh\ntrue\n```\n```text\nsaid\n```\n";
    assert_eq!(blocks(manual).len(), 2);
    assert_eq!(blocks(manual)[1].line, 4);
}
