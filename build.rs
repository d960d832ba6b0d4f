//! Has the program say which commit it was made from: `UHST_RELAY_VERSION` is `0.1.0 (abcdef123456)`, and outside of a git
//! checkout `0.1.0`.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let version = std::env::var("CARGO_PKG_VERSION").expect("cargo sets it");
    let version = match commit() {
        Some(commit) => format!("{version} ({commit})"),
        None => version,
    };
    println!("cargo:rustc-env=UHST_RELAY_VERSION={version}");
}

/// The commit that is checked out here.
fn commit() -> Option<String> {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    // An archive that was unpacked inside somebody's checkout has no commit of its own.
    let top = PathBuf::from(git(&here, &["rev-parse", "--show-toplevel"])?);
    if top.canonicalize().ok()? != Path::new(&here).canonicalize().ok()? {
        return None;
    }
    // Only what changes with the commit makes this run again, or every build would start afresh. Each of them may be
    // missing, and cargo takes a missing file for one that has changed: HEAD is one branch or another, the branch's own
    // file or packed-refs says which commit that is.
    let branch = git(&here, &["symbolic-ref", "--quiet", "HEAD"]);
    for name in ["HEAD", "logs/HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        if let Some(path) = git(&here, &["rev-parse", "--git-path", name]).map(|path| Path::new(&here).join(path))
            && path.is_file()
        {
            println!("cargo:rerun-if-changed={}", path.display());
        }
    }
    git(&here, &["rev-parse", "--short=12", "HEAD"])
}

/// What git says. `None` where there is no git, or nothing that it knows.
fn git(folder: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(folder).args(arguments).output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| said.trim().to_owned()).filter(|said| !said.is_empty())
}
