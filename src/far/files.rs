//! The files of a folder, for whoever asks: parts of them (RFC 9110, 14), what has changed since (13), and lists of
//! folders.
//!
//! Nothing outside the folder can be reached: the kernel itself resolves each path below it (`openat2`), so that neither
//! `..` nor a symbolic link leads out, however it is written and whoever changes it meanwhile. Nor can anything hidden
//! inside, by whatever name. A list of a folder has what would be given, and nothing else.

use super::answer::Answer;
use crate::html::escape;
use crate::ptth::{Method, OPTIONS, RequestHead};
use crate::syntax::digits;
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use std::fmt::Write as _;
use std::fs::{File, Metadata};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// How many entries of a folder are listed.
const MOST_ENTRIES: usize = 10_000;

/// A folder whose files are given to everybody.
pub struct Root(File);

impl Root {
    /// The folder at `path`.
    ///
    /// # Errors
    /// When it is none, or cannot be read.
    pub fn new(path: &Path) -> io::Result<Self> {
        Ok(Self(
            File::options()
                .read(true)
                .custom_flags((OFlags::DIRECTORY | OFlags::CLOEXEC).bits().cast_signed())
                .open(path)?,
        ))
    }

    pub(super) fn answer(&self, request: &RequestHead) -> Answer {
        if request.method_name() == OPTIONS {
            return Answer::new(204).field("allow", "GET, HEAD, OPTIONS");
        }
        let answer = self.find(request);
        if request.method == Method::Head { answer.head_only() } else { answer }
    }

    fn find(&self, request: &RequestHead) -> Answer {
        let (path, query) = match request.uri.split_once('?') {
            Some((path, query)) => (path, format!("?{query}")),
            None => (request.uri.as_str(), String::new()),
        };
        let Some(place) = place(path) else { return not_found() };
        let (file, about) = match self.open(&place) {
            Ok(found) => found,
            Err(error) => return failure(error),
        };
        if about.is_file() {
            return if path.ends_with('/') { not_found() } else { send(file, &about, &place, request) };
        }
        if !path.ends_with('/') {
            // Relative, because the client knows this path under a longer one.
            let name = urlencoding::encode_binary(place.file_name().unwrap_or_default().as_bytes()).into_owned();
            return Answer::sentence(307, "This is a folder.").field("location", format!("./{name}/{query}"));
        }
        let page = place.join("index.html");
        match self.open(&page) {
            Ok((file, about)) if about.is_file() => send(file, &about, &page, request),
            Err(error) if !is_absence(error) => failure(error),
            _ => self.list(&file, &place),
        }
    }

    /// Opens the file or folder at `place`, unless it is outside, or hidden.
    fn open(&self, place: &Path) -> Result<(File, Metadata), Errno> {
        let file = match self.resolve(place, ResolveFlags::NO_SYMLINKS) {
            Err(Errno::LOOP) => {
                let file = self.resolve(place, ResolveFlags::empty())?;
                // `place` shows nothing hidden, but the link may lead to it.
                if self.is_hidden(&file) {
                    return Err(Errno::NOENT);
                }
                file
            }
            other => other?,
        };
        let about = file.metadata().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        if about.is_file() || about.is_dir() { Ok((file, about)) } else { Err(Errno::NOENT) }
    }

    fn resolve(&self, place: &Path, links: ResolveFlags) -> Result<File, Errno> {
        // NONBLOCK: opening a FIFO would wait for somebody to write to it.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | links;
        let mut tries = 0;
        loop {
            tries += 1;
            match openat2(&self.0, place, flags, Mode::empty(), inside) {
                // Somebody renamed a folder at that moment.
                Err(Errno::AGAIN) if tries < 10 => {}
                // A kernel before 5.6, or a sandbox that does not know the call.
                Err(Errno::NOSYS | Errno::PERM) => return open_without_links(&self.0, place, flags),
                other => return other.map(File::from),
            }
        }
    }

    /// Whether a part of its path below the root, as the kernel knows it, is hidden. What cannot be told is.
    fn is_hidden(&self, file: &File) -> bool {
        let path = |file: &File| std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let (Ok(root), Ok(path)) = (path(&self.0), path(file)) else { return true };
        path.strip_prefix(root).map_or(true, |below| below.iter().any(|part| part.as_bytes().starts_with(b".")))
    }

    /// A page with the entries of a folder.
    fn list(&self, folder: &File, place: &Path) -> Answer {
        let entries = match Dir::read_from(folder) {
            Ok(entries) => entries,
            Err(error) => return failure(error),
        };
        let mut names: Vec<(String, bool)> = entries
            .flatten()
            .filter_map(|entry| {
                // To open a device may have an effect.
                let may_be = [FileType::RegularFile, FileType::Directory, FileType::Symlink, FileType::Unknown];
                let name = entry.file_name().to_str().ok()?;
                if name.starts_with('.') || !may_be.contains(&entry.file_type()) {
                    return None;
                }
                let (_, about) = self.open(&place.join(name)).ok()?;
                Some((name.to_owned(), about.is_dir()))
            })
            .take(MOST_ENTRIES + 1)
            .collect();
        let is_cut = names.len() > MOST_ENTRIES;
        names.truncate(MOST_ENTRIES);
        names.sort();
        page(place, &names, is_cut)
    }
}

/// Opens one part of the path after the other, and no symbolic link.
fn open_without_links(root: &File, place: &Path, flags: OFlags) -> Result<File, Errno> {
    let mut at = root.try_clone().map_err(|_| Errno::MFILE)?;
    for part in place {
        at = openat(&at, part, flags | OFlags::NOFOLLOW, Mode::empty())?.into();
    }
    Ok(at)
}

/// The place of a path below the root; `None` for one that has none: hidden files, and names that a file cannot have.
fn place(path: &str) -> Option<PathBuf> {
    let mut place = PathBuf::from(".");
    for part in path.strip_prefix('/')?.split('/') {
        let name = urlencoding::decode_binary(part.as_bytes());
        if name.is_empty() {
            // The end of a folder's path; elsewhere it is as good as one slash.
            continue;
        }
        // A dot at the beginning hides a file, and `..` and `.` begin with one as well.
        if name.starts_with(b".") || name.contains(&b'/') || name.contains(&0) {
            return None;
        }
        // A relay behind a web server passes on no other text.
        place.push(std::str::from_utf8(&name).ok()?);
    }
    Some(place)
}

fn not_found() -> Answer {
    Answer::sentence(404, "There is nothing here.")
}

/// Whether it means that there is nothing. XDEV: it would lead out of the folder.
fn is_absence(error: Errno) -> bool {
    matches!(
        error,
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NAMETOOLONG | Errno::NXIO | Errno::NODEV
    )
}

fn failure(error: Errno) -> Answer {
    match error {
        error if is_absence(error) => not_found(),
        Errno::ACCESS => Answer::sentence(403, "The server may not read this."),
        error => {
            say!("uhst-relay: a file cannot be read: {error}");
            Answer::sentence(500, "The server cannot read this.")
        }
    }
}

/// A file, or what was asked for of it.
fn send(mut file: File, about: &Metadata, place: &Path, request: &RequestHead) -> Answer {
    let size = about.len();
    let changed = about.modified().ok().filter(|time| has_date(*time));
    // To the nanosecond, so that two contents of the same length in one second differ.
    let tag = format!("\"{:x}-{:x}.{:x}-{size:x}\"", about.ino(), about.mtime(), about.mtime_nsec());
    let asked = |name: &str| request.fields.get(name);
    let with_validators = |answer: Answer| {
        let answer = answer.field("etag", &tag).field("cache-control", "no-cache");
        match changed {
            Some(changed) => answer.field("last-modified", httpdate::fmt_http_date(changed)),
            None => answer,
        }
    };
    let date_in = |text: &str| httpdate::parse_http_date(text).ok().map(whole_seconds);
    let changed_at = changed.map(whole_seconds);
    let is_known = match (asked("if-none-match"), asked("if-modified-since")) {
        (Some(tags), _) => {
            tags.split(',').map(str::trim).any(|known| known == "*" || known.trim_start_matches("W/") == tag)
        }
        (None, Some(date)) => changed_at.zip(date_in(date)).is_some_and(|(changed, date)| changed <= date),
        (None, None) => false,
    };
    if is_known {
        return with_validators(Answer::new(304));
    }
    // A part of another version would be mixed with what the client has already (RFC 9110, 13.1.5).
    let is_same = asked("if-range")
        .is_none_or(|known| known == tag || changed_at.is_some_and(|changed| date_in(known) == Some(changed)));
    let range = asked("range")
        .filter(|_| is_same && request.method == Method::Get)
        .map_or(Range::Whole, |asked| range(asked, size));
    let (first, length, status) = match range {
        Range::Whole => (0, size, 200),
        Range::Part { first, last } => (first, last - first + 1, 206),
        Range::Outside => {
            return Answer::sentence(416, "The file is shorter.").field("content-range", format!("bytes */{size}"));
        }
    };
    if first > 0 && file.seek(SeekFrom::Start(first)).is_err() {
        return Answer::sentence(500, "The server cannot read this.");
    }
    let answer = with_validators(Answer::new(status))
        .field("content-type", content_type(place))
        .field("x-content-type-options", "nosniff")
        .field("accept-ranges", "bytes")
        .body(length, file.take(length));
    if status == 206 {
        answer.field("content-range", format!("bytes {first}-{}/{size}", first + length - 1))
    } else {
        answer
    }
}

/// Whether HTTP has a date for it (RFC 9110, 5.6.7): a file system may know times before 1970 and after 9999.
fn has_date(time: SystemTime) -> bool {
    const YEAR_10000: u64 = 253_402_300_800;
    time.duration_since(UNIX_EPOCH).is_ok_and(|since| since.as_secs() < YEAR_10000)
}

fn whole_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What of a file is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    /// From byte `first` to byte `last`, that one included.
    Part {
        first: u64,
        last: u64,
    },
    Outside,
}

/// Reads a range (RFC 9110, 14.1.2). Several of them, other units and what is none at all mean the whole file.
fn range(asked: &str, size: u64) -> Range {
    let number = |text: &str| digits(text.as_bytes());
    let Some((first, last)) = asked.trim().strip_prefix("bytes=").and_then(|range| range.trim().split_once('-')) else {
        return Range::Whole;
    };
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first > last => Range::Whole,
        // The last bytes of nothing are all of it, which no 206 can say (RFC 9110, 14.1.2 and 14.4).
        (None, Some(1..)) if first.is_empty() && size == 0 => Range::Whole,
        (Some(first), _) if first >= size && (last.is_empty() || number(last).is_some()) => Range::Outside,
        (Some(first), Some(last)) => Range::Part { first, last: last.min(size - 1) },
        (Some(first), None) if last.is_empty() => Range::Part { first, last: size - 1 },
        (None, Some(0)) if first.is_empty() => Range::Outside,
        (None, Some(count)) if first.is_empty() => Range::Part { first: size - count.min(size), last: size - 1 },
        _ => Range::Whole,
    }
}

/// The page of these entries, with whether each is a folder.
fn page(place: &Path, names: &[(String, bool)], is_cut: bool) -> Answer {
    let mut title = String::from("/");
    place.iter().skip_while(|part| *part == ".").for_each(|part| {
        let _ = write!(title, "{}/", part.to_string_lossy());
    });
    let title = escape(&title);
    let mut page = format!(
        "<!DOCTYPE html>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n<h1>{title}</h1>\n<ul>\n"
    );
    if title != "/" {
        page += "<li><a href=\"../\">../</a></li>\n";
    }
    for (name, is_folder) in names {
        let slash = if *is_folder { "/" } else { "" };
        let link = urlencoding::encode(name);
        let _ = writeln!(page, "<li><a href=\"./{link}{slash}\">{}{slash}</a></li>", escape(name));
    }
    page += "</ul>\n";
    if is_cut {
        let _ = writeln!(page, "<p>There are more than {MOST_ENTRIES}; these are some of them.</p>");
    }
    Answer::new(200)
        .field("content-type", "text/html; charset=utf-8")
        .field("cache-control", "no-cache")
        .field("content-security-policy", "default-src 'none'")
        .bytes(page.into_bytes())
}

/// By the name's ending; what is not known is just bytes.
fn content_type(place: &Path) -> &'static str {
    let ending = place.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    match ending.as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "txt" | "md" | "log" => "text/plain; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "json" | "map" => "application/json",
        "xml" => "application/xml",
        "webmanifest" => "application/manifest+json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "woff" => "font/woff",
        "ttf" => "font/ttf",
        "mp3" => "audio/mpeg",
        "ogg" | "oga" | "opus" => "audio/ogg",
        "wav" => "audio/wav",
        "flac" => "audio/flac",
        "mp4" | "m4v" => "video/mp4",
        "webm" => "video/webm",
        "pdf" => "application/pdf",
        "wasm" => "application/wasm",
        "zip" => "application/zip",
        "gz" | "tgz" => "application/gzip",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_range_is_a_part_of_the_file_or_none() {
        let part = |first, last| Range::Part { first, last };
        for (asked, size, wanted) in [
            ("bytes=0-0", 10, part(0, 0)),
            ("bytes=2-5", 10, part(2, 5)),
            ("bytes=2-", 10, part(2, 9)),
            ("bytes=2-99", 10, part(2, 9)),
            ("bytes=-3", 10, part(7, 9)),
            ("bytes=-99", 10, part(0, 9)),
            ("bytes=10-", 10, Range::Outside),
            ("bytes=10-11", 10, Range::Outside),
            ("bytes=-0", 10, Range::Outside),
            ("bytes=0-", 0, Range::Outside),
            ("bytes=-1", 0, Range::Whole),
            ("bytes=-0", 0, Range::Outside),
            ("bytes=5-2", 10, Range::Whole),
            ("bytes=0-1,3-4", 10, Range::Whole),
            ("bytes=-", 10, Range::Whole),
            ("bytes=", 10, Range::Whole),
            ("bytes=+1-2", 10, Range::Whole),
            ("bytes=1-x", 10, Range::Whole),
            ("bytes=99-x", 10, Range::Whole),
            ("lines=1-2", 10, Range::Whole),
            ("bytes=0-99999999999999999999999", 10, Range::Whole),
        ] {
            assert_eq!(range(asked, size), wanted, "{asked} of {size}");
        }
    }

    #[test]
    fn a_time_has_a_date_from_1970_to_9999() {
        let at = |seconds| UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let last = at(253_402_300_799);
        assert_eq!(httpdate::fmt_http_date(last), "Fri, 31 Dec 9999 23:59:59 GMT");
        assert!(has_date(UNIX_EPOCH) && has_date(last));
        assert!(!has_date(at(253_402_300_800)));
        assert!(!has_date(UNIX_EPOCH - std::time::Duration::from_nanos(1)));
    }

    #[test]
    fn a_path_that_is_hidden_or_leads_elsewhere_has_no_place() {
        for path in [
            "",
            "a",
            "/..",
            "/a/../b",
            "/%2e%2e/a",
            "/.%2E/a",
            "/a/..%2fb",
            "/a%2fb",
            "/.git/config",
            "/%2ehidden",
            "/a%00",
            "/a%e4",
            "/./a",
        ] {
            assert_eq!(place(path), None, "{path}");
        }
        assert_eq!(place("/"), Some("./".into()));
        assert_eq!(place("/a%20b/c/"), Some("./a b/c".into()));
        assert_eq!(place("//etc/passwd"), Some("./etc/passwd".into()));
        assert_eq!(place("/a..b"), Some("./a..b".into()));
    }

    #[test]
    fn without_openat2_links_are_not_followed_at_all() {
        let dir = std::env::temp_dir().join(format!("uhst-relay-far-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("folder")).unwrap();
        std::fs::write(dir.join("folder/file"), "x").unwrap();
        std::os::unix::fs::symlink("folder", dir.join("link")).unwrap();
        let root = Root::new(&dir).unwrap();
        let open = |place: &str| open_without_links(&root.0, Path::new(place), OFlags::RDONLY).map(drop);
        assert_eq!(open("./folder/file"), Ok(()));
        assert_eq!(open("."), Ok(()));
        assert!(open("./link/file").is_err() && open("./link").is_err());
        assert!(root.open(Path::new("./link/file")).is_ok(), "a link that stays inside is as good as its target");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    proptest! {
        #[test]
        fn a_part_is_inside_the_file(asked in "bytes=[0-9]{0,3}-[0-9]{0,3}", size in 0..200_u64) {
            if let Range::Part { first, last } = range(&asked, size) {
                prop_assert!(first <= last && last < size);
            }
        }

        #[test]
        fn no_path_leads_out(path in "(/|\\.|%2e|%2F|a|%00|%){0,12}") {
            if let Some(place) = place(&format!("/{path}")) {
                let normal = |part| matches!(part, std::path::Component::CurDir | std::path::Component::Normal(_));
                prop_assert!(place.components().all(normal));
            }
        }
    }
}
