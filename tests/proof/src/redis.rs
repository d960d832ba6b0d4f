//! A Redis that keeps what it has answered for, however it ends.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long it may take to load what it has kept.
const PATIENCE: Duration = Duration::from_secs(60);

/// Debian's redis-server, or valkey-server. Dropped, it is killed.
pub struct Redis {
    folder: PathBuf,
    process: Child,
}

impl Redis {
    /// Starts it in a folder, with what there is already.
    pub fn start(folder: &Path) -> io::Result<Self> {
        let mut redis = Self { folder: folder.to_owned(), process: spawn(folder)? };
        redis.wait_until_it_answers()?;
        Ok(redis)
    }

    /// For `RELAY_STORE`.
    pub fn url(folder: &Path) -> String {
        format!("redis+unix://{}", socket(folder).display())
    }

    /// Kills it, and starts it again after a while.
    pub fn kill(&mut self, absence: Duration) -> io::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        std::thread::sleep(absence);
        self.process = spawn(&self.folder)?;
        self.wait_until_it_answers()
    }

    fn wait_until_it_answers(&mut self) -> io::Result<()> {
        let until = Instant::now() + PATIENCE;
        while !self.ask("PING").is_ok_and(|answer| answer == "+PONG") {
            if let Some(status) = self.process.try_wait()? {
                return Err(io::Error::other(format!("Redis has ended: {status}")));
            }
            if Instant::now() > until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The first line that it answers.
    fn ask(&self, command: &str) -> io::Result<String> {
        let mut socket = UnixStream::connect(socket(&self.folder))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.write_all(format!("{command}\r\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(socket).read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// How many keys there are.
    pub fn keys(&self) -> io::Result<u64> {
        self.ask("DBSIZE")?.trim_start_matches(':').parse().map_err(io::Error::other)
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("redis.sock")
}

fn spawn(folder: &Path) -> io::Result<Child> {
    let start = |program: &str| {
        Command::new(program)
            .args([
                "--port",
                "0",
                "--save",
                "",
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
                // So that it is killed while it writes its file anew, too.
                "--auto-aof-rewrite-min-size",
                "8mb",
                "--loglevel",
                "warning",
            ])
            .arg("--unixsocket")
            .arg(socket(folder))
            .arg("--dir")
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
    };
    start("redis-server").or_else(|_| start("valkey-server"))
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
