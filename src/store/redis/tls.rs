//! TLS to a server (`rediss://`).

use crate::config::redis::Trust;
use crate::store::remote::{Reason, Remote};
use crate::workers::blocking;
use rustix::fd::OwnedFd;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::io::{self, ErrorKind, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

/// Where systems keep whom they trust: Debian and its like, Fedora and its like, Alpine.
const SYSTEMS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// What encrypts a connection. It never waits: what cannot be sent or read yet is tried again.
pub struct Tls(ClientConnection);

/// A socket that never waits, as rustls has it.
struct Raw<'a>(&'a OwnedFd);

impl Read for Raw<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.0, bytes)?)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn failed(error: impl std::fmt::Display) -> Remote {
    Remote::new(Reason::Tls, format!("TLS: {error}"))
}

/// Whether it was done, or has to wait for the socket.
fn done(outcome: io::Result<usize>) -> Result<Option<usize>, Remote> {
    match outcome {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(Remote::new(Reason::Away, format!("the connection to Redis broke: {error}"))),
    }
}

/// The authorities in a file. It is read for each connection, so that a new one is used at once.
fn authorities(trust: &Trust) -> Result<RootCertStore, Remote> {
    let path = match trust {
        Trust::File(path) => path.clone(),
        Trust::System => SYSTEMS
            .into_iter()
            .map(PathBuf::from)
            .find(|path| path.exists())
            .ok_or_else(|| failed("this system has no file of authorities; RELAY_REDIS_CA may name one"))?,
    };
    let named = |error: &dyn std::fmt::Display| failed(format!("{}: {error}", path.display()));
    let certificates = CertificateDer::pem_file_iter(&path).map_err(|error| named(&error))?;
    let mut store = RootCertStore::empty();
    // A system's file may have some that nobody can use.
    store.add_parsable_certificates(certificates.flatten());
    if store.is_empty() { Err(named(&"there is no certificate in it")) } else { Ok(store) }
}

impl Tls {
    /// For a server that has to show a certificate for this name or address.
    pub fn new(host: &str, trust: &Trust) -> Result<Self, Remote> {
        let name = ServerName::try_from(host.to_owned()).map_err(failed)?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .with_root_certificates(blocking(|| authorities(trust))?)
            .with_no_client_auth();
        let mut tls = ClientConnection::new(Arc::new(config), name).map_err(failed)?;
        // Whoever sends waits until it is sent.
        tls.set_buffer_limit(None);
        Ok(Self(tls))
    }

    pub fn is_shaking_hands(&self) -> bool {
        self.0.is_handshaking()
    }

    /// Takes bytes that are to be sent.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), Remote> {
        self.0.writer().write_all(bytes).map_err(failed)
    }

    /// Sends what is to be sent; false where the socket does not take all of it yet.
    pub fn send(&mut self, socket: &OwnedFd) -> Result<bool, Remote> {
        while self.0.wants_write() {
            match self.0.write_tls(&mut Raw(socket)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                sent => {
                    if done(sent)?.is_none() {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Reads some of what has come; `None` where nothing has, and 0 at the end.
    pub fn hear(&mut self, socket: &OwnedFd) -> Result<Option<usize>, Remote> {
        let count = loop {
            match self.0.read_tls(&mut Raw(socket)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break done(read)?,
            }
        };
        if count.is_some() {
            let heard = self.0.process_new_packets();
            // Why it ends is said to the server, too, if it can be.
            let _ = self.send(socket);
            heard.map_err(failed)?;
        }
        Ok(count)
    }

    /// Gives what was said; `None` where there is nothing yet, and 0 at the end.
    pub fn take(&mut self, socket: &OwnedFd, bytes: &mut [u8]) -> Result<Option<usize>, Remote> {
        loop {
            match self.0.reader().read(bytes) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(Some(0)),
                given => {
                    if let Some(count) = done(given)? {
                        return Ok(Some(count));
                    }
                }
            }
            match self.hear(socket)? {
                Some(0) => return Ok(Some(0)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::process::Redis;
    use super::super::reply::{Reply, command};
    use super::super::servers::Servers;
    use super::super::testing::{TestServer, free_port, sooner_or_later};
    use super::*;
    use crate::config::Settings;
    use crate::config::redis::{Address, Server};
    use crate::gateway::run_blocking;
    use crate::store::buses::{BusEvent, BusName};
    use crate::store::files::Files;
    use crate::store::files::test_dir::TestDir;
    use std::process::Command;

    /// A certificate for 127.0.0.1 that vouches for itself, and its key; `None` where nothing makes one.
    fn certificate(dir: &TestDir, name: &str) -> Option<[PathBuf; 2]> {
        let files = [format!("{name}.pem"), format!("{name}.key")].map(|name| dir.join(&name));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE", "-out"])
            .arg(&files[0])
            .arg("-keyout")
            .arg(&files[1])
            .output();
        if made.is_ok_and(|made| made.status.success()) {
            return Some(files);
        }
        assert!(std::env::var("CI").as_deref() != Ok("true"), "cannot run this test: openssl is not installed");
        eprintln!("SKIPPED, nothing was tested: openssl is not installed");
        None
    }

    struct Scene {
        dir: TestDir,
        server: TestServer,
        port: u16,
    }

    impl Scene {
        fn new(wants_clients: &str) -> Option<Self> {
            let (dir, port) = (TestDir::new(), free_port());
            let [certificate, key] = certificate(&dir, "own")?.map(|path| path.to_str().unwrap().to_owned());
            let files = ["--tls-cert-file", &certificate, "--tls-ca-cert-file", &certificate, "--tls-key-file", &key];
            let place = ["--tls-port", &port.to_string(), "--tls-auth-clients", wants_clients];
            let server = TestServer::start_tcp(&[&files[..], &place].concat())?;
            Some(Self { dir, server, port })
        }

        fn address(&self, host: &str, trusted: &str) -> Address {
            let servers = vec![Server::Tcp(host.to_owned(), self.port)];
            Address { servers, tls: Some(Trust::File(self.dir.join(trusted))), ..Address::default() }
        }

        fn refuses(&self, address: Address) -> String {
            let refused = echo(&Servers::new(address), "a").unwrap_err();
            assert_eq!(refused.reason, Reason::Tls, "{refused:?}");
            assert!(self.server.keys().is_empty());
            refused.cause
        }
    }

    fn echo(servers: &Servers, text: &str) -> Result<Reply, Remote> {
        run_blocking(servers.call("{a}", &command(["ECHO", text])))
    }

    #[test]
    fn what_is_said_with_tls_arrives_whatever_its_length() {
        let Some(scene) = Scene::new("no") else { return };
        let servers = Servers::new(scene.address("127.0.0.1", "own.pem"));
        for length in [0, 1, 70_000, 500_000] {
            let text = "é".repeat(length);
            assert_eq!(echo(&servers, &text), Ok(Reply::BulkString(text.into_bytes())));
        }
        let connections = scene.server.ask(&["INFO", "stats"]);
        let Reply::BulkString(info) = connections else { panic!("it tells") };
        let told = String::from_utf8(info).unwrap();
        let connections = told.lines().find_map(|line| line.strip_prefix("total_connections_received:")).unwrap();
        assert_eq!(connections.parse::<u32>().unwrap(), 3, "to start, for all of this, and to ask this");
    }

    #[test]
    fn a_reader_is_woken_with_tls() {
        let Some(scene) = Scene::new("no") else { return };
        let process =
            || Redis::elsewhere(&scene.address("127.0.0.1", "own.pem"), Files::new(std::path::Path::new("/nowhere")));
        let (here, there, settings) = (process(), process(), Settings::default());
        let name = BusName::new("news").unwrap();
        let mut reader = run_blocking(here.subscribe(&name, None, None, &settings)).unwrap();
        for data in ["1", "2"] {
            run_blocking(there.notify(&name, data, &settings)).unwrap();
            sooner_or_later(|| reader.wake().unwrap().is_ready().then_some(()));
            let mut heard = Vec::new();
            sooner_or_later(|| {
                reader.hear();
                run_blocking(reader.fetch_next(|event| match event {
                    BusEvent::Message(message) => heard.push(message.data.to_owned()),
                    BusEvent::Lost(_) => panic!("nothing is lost"),
                }))
                .unwrap();
                (!heard.is_empty()).then_some(())
            });
            assert_eq!(heard, [data]);
        }
    }

    #[test]
    fn nobody_else_is_taken_for_the_server() {
        let Some(scene) = Scene::new("no") else { return };
        assert!(certificate(&scene.dir, "other").is_some());
        std::fs::write(scene.dir.join("none.pem"), "").unwrap();
        for (host, trusted, why) in [
            ("127.0.0.1", "other.pem", "certificate"),
            ("localhost", "own.pem", "certificate"),
            ("127.0.0.1", "none.pem", "none.pem"),
            ("127.0.0.1", "missing.pem", "missing.pem"),
        ] {
            let cause = scene.refuses(scene.address(host, trusted));
            assert!(cause.contains(why), "{cause}");
        }
        let system = Address { tls: Some(Trust::System), ..scene.address("127.0.0.1", "own.pem") };
        scene.refuses(system);
        // One that speaks no TLS waits for the end of a line.
        let plain = Address { servers: vec![scene.server.server.clone()], ..scene.address("127.0.0.1", "own.pem") };
        assert_eq!(echo(&Servers::new(plain), "a").unwrap_err().reason, Reason::Slow);
    }

    #[test]
    fn a_server_that_wants_a_certificate_is_known_to() {
        let Some(scene) = Scene::new("yes") else { return };
        let cause = scene.refuses(scene.address("127.0.0.1", "own.pem"));
        assert!(cause.to_lowercase().contains("certificate"), "{cause}");
    }

    #[test]
    fn a_stopped_server_keeps_nobody_waiting_for_its_handshake() {
        let Some(scene) = Scene::new("no") else { return };
        let servers = Servers::new(scene.address("127.0.0.1", "own.pem"));
        scene.server.freeze();
        assert_eq!(echo(&servers, "a").unwrap_err().reason, Reason::Slow);
        scene.server.go_on();
        echo(&servers, "a").unwrap();
    }
}
