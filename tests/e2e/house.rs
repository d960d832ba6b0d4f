//! The house: no two files of `src/` need each other, so that each can be read, and changed, after those that it needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The path of a module: `["store", "files"]`.
type Module = Vec<String>;

fn read(folder: &Path, module: &Module, files: &mut BTreeMap<Module, String>) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.file_stem().unwrap().to_str().unwrap().to_owned();
        let inner =
            if ["lib", "mod"].contains(&name.as_str()) { module.clone() } else { [&module[..], &[name]].concat() };
        match entry.extension().and_then(|extension| extension.to_str()) {
            None if entry.is_dir() => read(&entry, &inner, files),
            Some("rs") => _ = files.insert(inner, without_tests(&fs::read_to_string(&entry).unwrap())),
            _ => {}
        }
    }
}

/// The program in a file, without its comments: what is for tests alone comes last, or is another file.
fn without_tests(text: &str) -> String {
    let is_tests = |from: &str| {
        let mut lines = from.lines().skip(1);
        lines.next().unwrap().contains("test") && lines.next().is_some_and(|line| line.ends_with('{'))
    };
    let end = text.match_indices("\n#[cfg(").find(|(at, _)| is_tests(&text[*at..]));
    let program = &text[..end.map_or(text.len(), |(at, _)| at)];
    let program = program.replace("pub(in crate::", "pub(");
    program.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// The paths in a text, with each branch of a `use` on its own: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn paths(text: &str) -> Vec<String> {
    let (mut found, mut begun, mut path) = (Vec::new(), Vec::new(), String::new());
    for c in text.chars() {
        match c {
            '{' if path.ends_with("::") => begun.push(std::mem::take(&mut path)),
            c if c.is_alphanumeric() || "_:$".contains(c) => path.push(c),
            c => {
                found.push(begun.concat() + &std::mem::take(&mut path));
                if c == '}' || c == ';' {
                    begun.pop();
                }
            }
        }
    }
    found
}

/// The file that a path leads to, from this module.
fn file_of(path: &str, from: &Module, files: &BTreeMap<Module, String>) -> Option<Module> {
    let (mut base, mut rest) = match path.split_once("::")? {
        ("crate", rest) => (Module::new(), rest),
        ("self", rest) => (from.clone(), rest),
        ("super", _) => (from.clone(), path),
        (first, _) => (files.contains_key(&[&from[..], &[first.to_owned()]].concat()).then(|| from.clone())?, path),
    };
    while let Some(after) = rest.strip_prefix("super::") {
        base.pop();
        rest = after;
    }
    base.extend(rest.split("::").map(str::to_owned));
    while !files.contains_key(&base) {
        base.pop()?;
    }
    Some(base)
}

/// Whether one leads to the other, over any number of files.
fn leads(from: &Module, to: &Module, needs: &BTreeMap<Module, BTreeSet<Module>>, seen: &mut BTreeSet<Module>) -> bool {
    needs[from].iter().any(|next| next == to || (seen.insert(next.clone()) && leads(next, to, needs, seen)))
}

#[test]
fn no_two_files_of_src_need_each_other() {
    let mut files = BTreeMap::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &Module::new(), &mut files);
    files.retain(|module, _| !module.iter().any(|name| ["main", "tests", "contract"].contains(&name.as_str())));
    let needs_of = |(module, text): (&Module, &String)| {
        let needs = paths(text).into_iter().filter_map(|path| file_of(&path, module, &files));
        (module.clone(), needs.filter(|other| other != module).collect::<BTreeSet<_>>())
    };
    let needs: BTreeMap<_, _> = files.iter().map(needs_of).collect();
    for (file, other) in [("refusal", "gateway"), ("store", "store/files")] {
        let [file, other] = [file, other].map(|path| path.split('/').map(str::to_owned).collect::<Module>());
        assert!(needs[&file].contains(&other), "not everything was found: {file:?} needs {other:?}");
    }
    let is_circular = |file: &&Module| leads(file, file, &needs, &mut BTreeSet::new());
    let circular: Vec<_> = needs.keys().filter(is_circular).map(|file| file.join("/")).collect();
    assert_eq!(circular, [""; 0], "each of these needs itself, over others");
}
