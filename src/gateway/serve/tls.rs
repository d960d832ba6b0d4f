//! TLS, for those that want it without a proxy in front.

use super::limits::HEAD_TIME;
use super::listening::Socket;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

/// The certificate of the server, and its chain, in a file; its key in another. Both in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificates, the server's own first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

impl TlsFiles {
    fn read(&self) -> Result<TlsAcceptor, String> {
        let named = |path: &PathBuf, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let certificates = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| named(&self.certificate, &error))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| named(&self.key, &error))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .map_err(|error| format!("{} and {}: {error}", self.certificate.display(), self.key.display()))?;
        // RFC 7301: the first that both know.
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// Whether client and server have agreed on HTTP/2.
pub(super) fn speaks_http2(stream: &TlsStream<Socket>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(b"h2")
}

/// The certificate that is in use.
pub(super) struct Tls {
    files: TlsFiles,
    acceptor: RwLock<TlsAcceptor>,
}

impl Tls {
    pub fn new(files: TlsFiles) -> Result<Self, String> {
        let acceptor = RwLock::new(files.read()?);
        Ok(Self { files, acceptor })
    }

    /// Reads the files again. Where they cannot be used, what was read before stays.
    pub fn read_again(&self) -> Result<(), String> {
        let acceptor = self.files.read()?;
        *self.acceptor.write().unwrap_or_else(PoisonError::into_inner) = acceptor;
        Ok(())
    }

    /// Does the handshake, for which a client has as much time as for a head.
    pub async fn accept(&self, socket: Socket) -> io::Result<TlsStream<Socket>> {
        let acceptor = self.acceptor.read().unwrap_or_else(PoisonError::into_inner).clone();
        tokio::time::timeout(HEAD_TIME, acceptor.accept(socket)).await?
    }
}
