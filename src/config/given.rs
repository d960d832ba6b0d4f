//! What the owner has set, and where: in the environment, in the settings file of the data folder, and in the one beside the
//! program.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

/// The file of settings inside the data folder, and the name of the one beside the program.
const SETTINGS_FILE: &str = "settings.conf";

/// The one setting that the file beside the program may have.
const DATA_DIR: &str = "RELAY_DATA_DIR";

/// What [`SETTINGS_FILE`] is called by mistake, in lower case: Windows hides the last part of a name, and adds one.
const MISTAKEN_NAMES: [&str; 4] = [SETTINGS_FILE, "settings.conf.txt", "settings.conf.conf", "settings.txt"];

/// A setting that cannot be read. It names the setting, never its value: that may be the secret.
#[derive(Debug, PartialEq, Eq)]
pub struct SettingError {
    setting: String,
    wanted: String,
}

impl fmt::Display for SettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "The setting {} cannot be read: {}.", self.setting, self.wanted)
    }
}

impl std::error::Error for SettingError {}

pub(super) fn unreadable(setting: &str, wanted: &str) -> SettingError {
    SettingError { setting: setting.to_owned(), wanted: wanted.to_owned() }
}

/// Something about the settings that its owner wants to know, although the relay can work with it. It never shows a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oddity {
    /// What it is, in a sentence.
    pub sentence: String,
    /// What to do.
    pub cure: String,
}

impl Oddity {
    pub(super) fn new(sentence: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), cure: cure.into() }
    }

    /// Tells the operator, on stderr.
    pub fn log(&self) {
        say!("uhst-relay: {} {}", self.sentence, self.cure);
    }
}

/// The data folder that the environment names.
pub(super) fn in_environment() -> Option<PathBuf> {
    std::env::var_os(DATA_DIR).filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// The data folder that the settings file beside the program names, or else the default.
pub(super) fn beside_program(default: impl FnOnce(&Path) -> PathBuf) -> Result<PathBuf, SettingError> {
    let folder = program_folder();
    Ok(named_beside(&folder)?.unwrap_or_else(|| default(&folder)))
}

/// The folder that the program is in. In a chroot without `/proc` the program does not know; then web servers have made it
/// the current one, or named the program with its whole path (RFC 3875, 7.2).
pub(super) fn program_folder() -> PathBuf {
    let program = std::env::current_exe().ok().or_else(|| std::env::args_os().next().map(PathBuf::from));
    program.as_deref().and_then(Path::parent).unwrap_or(Path::new("")).to_owned()
}

/// The data folder that the settings file beside the program names, if there is such a file.
fn named_beside(program_folder: &Path) -> Result<Option<PathBuf>, SettingError> {
    let Some(text) = read_if_there(&program_folder.join(SETTINGS_FILE), "beside the program")? else { return Ok(None) };
    let lines = lines(&text)?;
    if let Some(line) = lines.iter().find(|line| line.key != DATA_DIR) {
        let wanted = format!(
            "line {} of the one beside the program is not RELAY_DATA_DIR, and everything else belongs into the one in the \
             data folder, which the web cannot see",
            line.number
        );
        return Err(unreadable(SETTINGS_FILE, &wanted));
    }
    // They would be part of a name, which begins a folder in the midst of what the web can see.
    if lines.iter().any(|line| line.value.starts_with(['"', '\''])) {
        return Err(unreadable(DATA_DIR, "it must be without quotation marks"));
    }
    Ok(lines.first().filter(|line| !line.value.is_empty()).map(|line| program_folder.join(line.value)))
}

/// The settings file of the data folder, empty where there is none.
pub(super) fn read_file(data_dir: &Path) -> Result<String, SettingError> {
    use rustix::fs::{Access, access};
    // Whoever may not even enter the folder is told so by the store: this file is not what is wrong.
    if access(data_dir, Access::EXEC_OK) == Err(rustix::io::Errno::ACCESS) {
        return Ok(String::new());
    }
    Ok(read_if_there(&data_dir.join(SETTINGS_FILE), "in the data folder")?.unwrap_or_default())
}

/// A settings file. It may hold the secret, so nothing of it is ever shown.
fn read_if_there(path: &Path, place: &str) -> Result<Option<String>, SettingError> {
    use std::io::ErrorKind::{InvalidData, NotADirectory, NotFound, PermissionDenied};
    let wanted = match std::fs::read_to_string(path) {
        Ok(text) => return Ok(Some(text)),
        // No file, or no data folder yet, or (ENOTDIR) no folder at all: the store says what is wrong with that.
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => return Ok(None),
        Err(error) if error.kind() == PermissionDenied => {
            format!("the relay's user may not read the one {place}; its owner allows that with permissions 644")
        }
        Err(error) if error.kind() == InvalidData => format!("the one {place} must be a text in UTF-8"),
        Err(error) => format!("the one {place} gives '{}'", error.kind()),
    };
    Err(unreadable(SETTINGS_FILE, &wanted))
}

/// A line of a settings file.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    number: usize,
    key: &'a str,
    value: &'a str,
}

/// The lines of a settings file that set something. One that cannot is an error.
fn lines(text: &str) -> Result<Vec<Line<'_>>, SettingError> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    // Windows puts a byte order mark in front.
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let (line, number) = (line.trim(), index + 1);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            return Err(unreadable(SETTINGS_FILE, &format!("line {number} has no = in it")));
        };
        let line = Line { number, key: key.trim(), value: value.trim() };
        if let Some(earlier) = lines.iter().find(|earlier| earlier.key == line.key) {
            let wanted = format!("line {number} sets again what line {} has set", earlier.number);
            return Err(unreadable(SETTINGS_FILE, &wanted));
        }
        lines.push(line);
    }
    Ok(lines)
}

/// Files that were meant to be the settings file of that folder.
pub(super) fn mistaken_files(folder: &Path, place: &str) -> Vec<Oddity> {
    // Where there is no folder, or none that may be looked into, the store has something to say.
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let is_mistaken =
        |name: &String| name != SETTINGS_FILE && MISTAKEN_NAMES.contains(&name.to_ascii_lowercase().as_str());
    let mut names: Vec<String> = names.filter_map(|name| name.into_string().ok()).filter(is_mistaken).collect();
    names.sort();
    let oddity = |name: String| {
        Oddity::new(format!("The file `{name}` {place} has no effect."), "Rename it: it must be `settings.conf`.")
    };
    names.into_iter().map(oddity).collect()
}

/// How the names of all settings begin, so that the environment is looked through once.
pub(super) const PREFIXES: [&str; 3] = ["JWT_", "RELAY_", "WEBSOCKET_"];

/// What the owner has set, in the environment and in the settings file.
pub(super) struct Assignments<'a> {
    variables: Vec<(String, OsString)>,
    lines: Vec<Line<'a>>,
    /// The names for which no setting has asked yet, so that no second list of names could be forgotten.
    unasked: RefCell<Vec<String>>,
}

impl<'a> Assignments<'a> {
    /// Reads the variables and the text of a settings file.
    pub(super) fn read(
        environment: impl Iterator<Item = (OsString, OsString)>,
        text: &'a str,
    ) -> Result<Self, SettingError> {
        let lines = lines(text)?;
        let as_text = |(key, value): (OsString, OsString)| Some((key.into_string().ok()?, value));
        let is_setting = |(key, _): &(String, OsString)| PREFIXES.iter().any(|prefix| key.starts_with(prefix));
        let variables: Vec<_> = environment.filter_map(as_text).filter(is_setting).collect();
        let names = variables.iter().map(|(key, _)| key.as_str()).chain(lines.iter().map(|line| line.key));
        let unasked = names.filter(|key| *key != DATA_DIR).map(str::to_owned).collect();
        Ok(Self { variables, lines, unasked: RefCell::new(unasked) })
    }

    /// The data folder's own file cannot say where the data folder is.
    pub(super) fn refuse_data_dir(&self) -> Result<(), SettingError> {
        let Some(line) = self.lines.iter().find(|line| line.key == DATA_DIR) else { return Ok(()) };
        let wanted = format!(
            "line {} of the settings.conf in the data folder comes too late for it; write it into the server's \
             configuration, or into a settings.conf beside the program",
            line.number
        );
        Err(unreadable(DATA_DIR, &wanted))
    }

    /// What a setting was given. The environment wins.
    pub(super) fn get(&self, key: &str) -> Result<Option<String>, SettingError> {
        self.unasked.borrow_mut().retain(|name| name != key);
        match self.variables.iter().find(|(name, _)| name == key) {
            Some((_, value)) => {
                value.to_str().map(|value| Some(value.to_owned())).ok_or_else(|| unreadable(key, "it must be UTF-8"))
            }
            None => Ok(self.lines.iter().find(|line| line.key == key).map(|line| line.value.to_owned())),
        }
    }

    /// The names that are meant for a relay and no setting's. A settings file may have others, which are for other programs;
    /// what does not look like a name is not shown: it may be a secret.
    pub(super) fn without_effect(self) -> Vec<Oddity> {
        const CURE: &str = "Correct its name, or remove it; the README lists all settings.";
        let unasked = self.unasked.into_inner();
        let is_name = |key: &str| key.len() <= 64 && key.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
        let is_stray = |key: &str, prefixes: &[&str]| {
            unasked.iter().any(|name| name == key) && prefixes.iter().any(|prefix| key.starts_with(prefix))
        };
        let in_file = self.lines.iter().filter(|line| is_stray(line.key, &["RELAY_", "JWT_"])).map(|line| {
            let name = if is_name(line.key) { format!(": there is no {}", line.key) } else { String::new() };
            Oddity::new(format!("Line {} of `settings.conf` has no effect{name}.", line.number), CURE)
        });
        let is_stray_variable = |key: &&String| is_stray(key, &["RELAY_"]) && is_name(key);
        let in_environment = self
            .variables
            .iter()
            .map(|(key, _)| key)
            .filter(is_stray_variable)
            .map(|key| Oddity::new(format!("The variable {key} has no effect: there is no such setting."), CURE));
        in_file.chain(in_environment).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_settings_file_has_comments_and_white_space() {
        let file = "\u{feff}# RELAY_PREFIX=no\r\n RELAY_PREFIX = yes \r\n\n  # more\nJWT_SECRET=a=b\n";
        let line = |number, key, value| Line { number, key, value };
        assert_eq!(lines(file), Ok(vec![line(2, "RELAY_PREFIX", "yes"), line(5, "JWT_SECRET", "a=b")]));
    }

    #[test]
    fn a_line_that_cannot_have_an_effect_is_an_error_that_does_not_show_it() {
        for (file, number) in [("RELAY_PREFIX: hidden", 1), ("\nhidden\n", 2), ("A=1\nhidden=2\nhidden = 3", 3)] {
            let error = lines(file).unwrap_err().to_string();
            assert!(error.contains(&format!("line {number}")) && error.contains(SETTINGS_FILE), "{error}");
            assert!(!error.contains("hidden"), "{error}");
        }
    }

    #[test]
    fn the_file_beside_the_program_names_the_data_folder_and_nothing_else() {
        let dir = crate::store::files::test_dir::TestDir::new();
        let folder = dir.join("");
        let named = |text: &str| {
            std::fs::write(dir.join(SETTINGS_FILE), text).unwrap();
            named_beside(&folder)
        };
        assert_eq!(named_beside(&folder), Ok(None));
        assert_eq!(named("RELAY_DATA_DIR=/elsewhere"), Ok(Some(PathBuf::from("/elsewhere"))));
        assert_eq!(named("RELAY_DATA_DIR=near"), Ok(Some(dir.join("near"))));
        assert_eq!(named("RELAY_DATA_DIR="), Ok(None));
        for quoted in ["RELAY_DATA_DIR=\"../near\"", "RELAY_DATA_DIR='/elsewhere'"] {
            assert!(named(quoted).unwrap_err().to_string().contains("quotation marks"));
        }
        for text in ["JWT_SECRET=hidden", "RELAY_DATA_DIR=a\nRELAY_PREFIX=hidden", "hidden"] {
            let error = named(text).unwrap_err().to_string();
            assert!(error.contains(SETTINGS_FILE) && !error.contains("hidden"), "{error}");
        }
    }

    #[test]
    fn a_settings_file_under_another_name_is_told() {
        let dir = crate::store::files::test_dir::TestDir::new();
        for name in ["settings.conf", "settings.conf.bak", "Settings.conf", "settings.conf.txt", "other.txt"] {
            std::fs::write(dir.join(name), "").unwrap();
        }
        let told: Vec<_> = mistaken_files(&dir.join(""), "here").into_iter().map(|oddity| oddity.sentence).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("`Settings.conf`") && told[1].contains("`settings.conf.txt`"), "{told:?}");
    }
}
