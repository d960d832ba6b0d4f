//! The files to download: all of them are in the archive, it is the same bytes whenever and wherever it is packed, and the
//! programs in it say what they were made from. That the programs themselves are the same bytes from two folders, which takes
//! minutes, is proved by `tests/proof/dist`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::place::{Folder, built, repository};

/// The programs for a web server, which can be had alone, too.
const CGI: [&str; 2] = ["relay-redis.cgi", "relay.cgi"];

/// Runs a command to its good end: what it has printed.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A copy of what the repository holds, without its history, with the programs as they were built.
pub fn copy(folder: &Path) {
    let here = repository();
    fs::create_dir_all(folder.join("target")).unwrap();
    let mut tar = Command::new("sh");
    tar.arg("-c")
        .arg(r#"tar c --exclude=node_modules deploy src/protocol README.md LICENSE-* | tar x -C "$1""#)
        .arg("sh")
        .arg(folder);
    run(tar.current_dir(here));
    for program in CGI {
        run(Command::new("cp").arg(built(program)).arg(folder.join("target")));
    }
    // The one of the tests stands in for the static one: packing is what is looked at.
    run(Command::new("cp").arg(env!("CARGO_BIN_EXE_uhst-relay")).arg(folder.join("target/uhst-relay")));
    run(Command::new("strip").arg(folder.join("target/uhst-relay")));
}

pub fn pack(folder: &Path, umask: &str, time_zone: &str) -> PathBuf {
    let mut dist = Command::new("sh");
    dist.arg("-c").arg(format!("umask {umask}; exec \"$0\" --built")).arg(folder.join("deploy/dist"));
    run(dist.current_dir("/").env("TZ", time_zone).env("SOURCE_DATE_EPOCH", "1700000000").env("LC_ALL", "C.UTF-8"));
    folder.join("target/dist")
}

#[test]
fn the_archive_has_everything_and_is_the_same_bytes_elsewhere() {
    let folder = Folder::new();
    let (here, elsewhere) = (folder.join("here"), folder.join("some where/else"));
    copy(&here);
    copy(&elsewhere);
    // As another person's checkout at another time.
    run(Command::new("sh")
        .arg("-c")
        .arg(r#"find "$1" -exec touch -h {} + && chmod -R g+w "$1""#)
        .arg("sh")
        .arg(&elsewhere));
    let (here, elsewhere) = (pack(&here, "022", "UTC"), pack(&elsewhere, "077", "Asia/Tokyo"));

    let name =
        format!("uhst-relay-{}-linux-{}", env!("CARGO_PKG_VERSION"), run(Command::new("uname").arg("-m")).trim());
    let archive = format!("{name}.tar.gz");
    let mut files: Vec<_> = fs::read_dir(&here).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["SHA256SUMS", CGI[0], CGI[1], &archive]);
    for file in &files {
        assert!(fs::read(here.join(file)).unwrap() == fs::read(elsewhere.join(file)).unwrap(), "{}", file.display());
    }
    run(Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(&here));

    let list = run(Command::new("tar").args(["--list", "--verbose", "--gzip", "--file"]).arg(here.join(&archive)));
    let has = |path: &str, mode: &str| {
        let line = list.lines().find(|line| line.ends_with(&format!(" {name}/{path}")));
        let line = line.unwrap_or_else(|| panic!("no {path} in {list}"));
        assert!(line.starts_with(mode) && line.contains(" 0/0 ") && line.contains(" 2023-11-1"), "{line}");
    };
    for program in ["uhst-relay", CGI[0], CGI[1], "deploy/apache/run"] {
        has(program, "-rwxr-xr-x");
    }
    for file in [
        ".htaccess",
        "README.md",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "deploy/README.md",
        "deploy/examples/chat.png",
        "src/protocol/uhst.md",
        "deploy/systemd/uhst-relay.service",
        "man/uhst-relay.1",
        "completions/uhst-relay.bash",
        "completions/_uhst-relay",
        "completions/uhst-relay.fish",
    ] {
        has(file, "-rw-r--r--");
    }
    let examples = repository().join("deploy/examples");
    for example in fs::read_dir(examples).expect("the examples are below deploy/").map(|entry| entry.unwrap()) {
        let example = example.file_name().into_string().unwrap();
        assert!(list.contains(&format!("{name}/deploy/examples/{example}")), "no {example} in {list}");
    }

    let unpacked = folder.join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    run(Command::new("tar").args(["--extract", "--gzip", "--file"]).arg(here.join(&archive)).arg("-C").arg(&unpacked));
    for program in CGI {
        let version = run(Command::new(unpacked.join(&name).join(program)).arg("--version"));
        assert!(version.starts_with(concat!("uhst-relay ", env!("CARGO_PKG_VERSION"))), "{version}");
        let alone = fs::read(here.join(program)).unwrap();
        assert!(alone == fs::read(built(program)).unwrap(), "{program} is not the one that was built");
    }
    let page = fs::read_to_string(unpacked.join(&name).join("man/uhst-relay.1")).unwrap();
    assert!(page.contains(".SH COMMANDS"), "{page}");
}

/// What the build script says in a folder.
fn version_in(script: &Path, folder: &Path) -> (String, Vec<PathBuf>) {
    let mut command = Command::new(script);
    command.env("CARGO_MANIFEST_DIR", folder).env("CARGO_PKG_VERSION", "1.2.3").current_dir("/");
    let said = run(&mut command);
    let version = said.lines().find_map(|line| line.strip_prefix("cargo:rustc-env=UHST_RELAY_VERSION="));
    let watched = said.lines().filter_map(|line| line.strip_prefix("cargo:rerun-if-changed=")).map(PathBuf::from);
    (version.unwrap().to_owned(), watched.collect())
}

#[test]
fn the_commit_is_that_of_this_checkout_or_is_not_said() {
    let folder = Folder::new();
    let script = folder.join("build-script");
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    run(Command::new(rustc).args(["--edition", "2024", "-o"]).arg(&script).arg(repository().join("build.rs")));
    let checkout = folder.join("checkout");
    let inside = checkout.join("vendor/uhst-relay");
    fs::create_dir_all(&inside).unwrap();
    assert_eq!(version_in(&script, folder.path()).0, "1.2.3", "no checkout");

    let git = |arguments: &[&str]| {
        let identity = ["-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgsign=false"];
        run(Command::new("git").arg("-C").arg(&checkout).args(identity).args(arguments)).trim().to_owned()
    };
    git(&["init", "--quiet", "."]);
    assert_eq!(version_in(&script, &checkout).0, "1.2.3", "no commit yet");
    let mut seen: Vec<Vec<u8>> = Vec::new();
    // On a branch; packed away; and on none.
    for step in [&["status"][..], &["pack-refs", "--all"], &["checkout", "--quiet", "--detach"]] {
        git(&["commit", "--quiet", "--allow-empty", "--message", "x"]);
        git(step);
        let commit = git(&["rev-parse", "--short=12", "HEAD"]);
        let (version, watched) = version_in(&script, &checkout);
        assert_eq!(version, format!("1.2.3 ({commit})"));
        // A file that is missing would make every build start afresh; one of those that are there tells of the commit.
        let watched: Vec<_> = watched.into_iter().filter(|path| path.is_absolute()).collect();
        let now: Vec<u8> = watched.iter().flat_map(|path| fs::read(path).expect("it is there")).collect();
        assert!(!seen.contains(&now), "{watched:?} are as they were before the commit");
        seen.push(now);
    }
    assert_eq!(version_in(&script, &inside).0, "1.2.3", "another project's checkout");
}

#[test]
fn a_second_build_has_nothing_to_do() {
    // These are the test's own. The build scripts of some dependencies look at them, and would run again.
    const OWN: [&str; 6] =
        ["CARGO_PKG_", "CARGO_BIN_", "CARGO_MANIFEST_", "CARGO_PRIMARY_PACKAGE", "CARGO_CRATE_NAME", "OUT_DIR"];
    let build = || {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let mut command = Command::new(cargo);
        // What has built this very test, so that there is little to do the first time as well.
        command
            .args(["test", "--locked", "--no-run", "--test", "e2e", "--message-format=json"])
            .current_dir(repository());
        for (name, _) in std::env::vars().filter(|(name, _)| OWN.iter().any(|own| name.starts_with(own))) {
            command.env_remove(name);
        }
        run(&mut command)
    };
    build();
    let said = build();
    let ours = said.lines().filter(|line| line.contains("compiler-artifact") && line.contains("uhst-relay"));
    let stale: Vec<_> = ours.filter(|line| line.contains("\"fresh\":false")).collect();
    assert!(said.contains("\"fresh\":true") && stale.is_empty(), "{stale:?}");
}
