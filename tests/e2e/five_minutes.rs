//! Five minutes to a working chat: the steps of the README, as they are printed and nothing else, from an empty web space and
//! the file to download to two browsers that talk to each other.

use std::fs;
use std::process::Command;

use crate::dist::{copy, pack};
use crate::place::{Folder, give_to, repository, set_mode};
use crate::shared_hosts::{Apache, SUEXEC, customer, suexec_folder};
use crate::web::passes_in_a_browser;

/// What a step says to do.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// To be typed, or done with an upload program.
    Type(String),
    /// To be opened in a browser.
    Open(String),
    /// To be pressed there.
    Press(String),
}

/// The numbered list below a heading of the README.
fn steps(readme: &str, heading: &str) -> Vec<Step> {
    let section = readme.split("\n## ").find(|section| section.starts_with(heading)).expect("the section");
    let is_step = |line: &&str| line.split_once(". ").is_some_and(|(number, _)| number.parse::<u32>().is_ok());
    section.lines().filter(is_step).map(step).collect()
}

fn step(line: &str) -> Step {
    let between = |begin: &str, end: &str| {
        line.split_once(begin).and_then(|(_, rest)| rest.split_once(end)).map(|(found, _)| found.to_owned())
    };
    match (between(": `", "`"), between("**", "**")) {
        (Some(address), _) if address.starts_with("https://") => Step::Open(address),
        (Some(command), _) => Step::Type(command),
        (None, Some(button)) => Step::Press(button),
        (None, None) => panic!("nothing to do in {line}"),
    }
}

pub fn the_steps_of_the_readme_lead_to_a_chat() {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let steps = steps(&readme, "Put it on your web space");
    assert!((3..=5).contains(&steps.len()), "{steps:?}");

    let Some(space) = suexec_folder() else { return };
    // What the host has given to its customer: a folder, and in it an empty cgi-bin.
    let cgi_bin = space.join("cgi-bin");
    fs::create_dir(&cgi_bin).unwrap();
    set_mode(&cgi_bin, 0o755);
    give_to(&cgi_bin, customer());
    give_to(space.path(), customer());
    let build = Folder::new();
    copy(build.path());
    let download = fs::read_dir(pack(build.path(), "022", "UTC")).unwrap().map(|entry| entry.unwrap().path());
    let archive = download.into_iter().find(|path| path.extension().is_some_and(|end| end == "gz")).unwrap();
    let archive_name = archive.file_name().unwrap();
    fs::copy(&archive, space.join(archive_name)).unwrap();
    let Some(apache) = Apache::start(space, SUEXEC) else { return };

    let user = customer();
    let (mut address, mut button) = (None, None);
    for step in steps {
        match step {
            Step::Type(command) => {
                let done = Command::new("setpriv")
                    .args([format!("--reuid={}", user.uid), format!("--regid={}", user.gid), "--clear-groups".into()])
                    .args(["--", "bash", "-euc", &command])
                    .current_dir(apache.root())
                    .output()
                    .unwrap();
                assert!(done.status.success(), "{command}: {done:?}");
            }
            Step::Open(url) => address = Some(url.replace("https://example.org", &apache.origin())),
            Step::Press(name) => button = Some(name),
        }
    }
    passes_in_a_browser("five-minutes.mjs", &[&address.expect("an address"), &button.expect("a button")]);
}

#[test]
fn a_step_is_what_is_typed_opened_or_pressed() {
    let readme = "# A\n\n## Steps\n\n1. Do: `a b`. (Or `c`.)\n2. Open: `https://x/y`.\n3. Press **Go**, and wait.\n\n## B\n\n1. No.\n";
    let expected = [Step::Type("a b".into()), Step::Open("https://x/y".into()), Step::Press("Go".into())];
    assert_eq!(steps(readme, "Steps"), expected);
}
