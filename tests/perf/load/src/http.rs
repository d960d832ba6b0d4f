//! As much of HTTP/1.1 (RFC 9112) as a client of a relay needs: requests out, answers and endless answers in.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};

/// Where a relay is.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    authority: String,
    path: String,
}

impl Target {
    /// Reads `http://host[:port][/path]`.
    pub fn parse(url: &str) -> Result<Self, String> {
        let rest = url.strip_prefix("http://").ok_or_else(|| format!("{url}: only http:// is spoken here"))?;
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, "/"),
        };
        let with_port = if authority.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok()) {
            authority.to_owned()
        } else {
            format!("{authority}:80")
        };
        // A name may stand for several addresses, `localhost` for two: the one that answers is the server's.
        let address = with_port
            .to_socket_addrs()
            .map_err(|error| format!("{with_port}: {error}"))?
            .find(|address| TcpStream::connect(address).is_ok())
            .ok_or_else(|| format!("{with_port}: nobody answers there"))?;
        Ok(Self { address, authority: authority.to_owned(), path: path.to_owned() })
    }

    /// A whole POST request.
    pub fn post(&self, query: &str, body: &[u8]) -> Vec<u8> {
        self.request("POST", query, body)
    }

    /// A whole request with a body.
    pub fn request(&self, method: &str, query: &str, body: &[u8]) -> Vec<u8> {
        let mut head = self.head(method, query);
        let _ = write!(head, "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        let mut request = head.into_bytes();
        request.extend_from_slice(body);
        request
    }

    /// A whole handshake for a `WebSocket` (RFC 6455, 4.1).
    pub fn upgrade(&self) -> String {
        format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.path, self.authority
        )
    }

    /// A whole GET request for a stream.
    pub fn listen(&self, query: &str) -> Vec<u8> {
        let mut head = self.head("GET", query);
        head.push_str("Accept: text/event-stream\r\n\r\n");
        head.into_bytes()
    }

    fn head(&self, method: &str, query: &str) -> String {
        format!("{method} {}?{query} HTTP/1.1\r\nHost: {}\r\n", self.path, self.authority)
    }
}

/// Takes the bytes of a connection and cuts answers out of them.
pub struct AnswerReader {
    raw: Vec<u8>,
    phase: Phase,
    /// Of the answer being read; 0 before its head is in.
    pub status: u16,
    /// What has come of its body. A stream's owner empties it as it goes.
    pub body: Vec<u8>,
    /// The server will close the connection after this answer.
    pub close: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Head,
    Length(usize),
    ChunkSize,
    Chunk(usize),
    ChunkEnd,
    Trailer,
    ToEnd,
    Whole,
}

impl AnswerReader {
    pub fn new() -> Self {
        Self { raw: Vec::new(), phase: Phase::Head, status: 0, body: Vec::new(), close: false }
    }

    /// Is the head in?
    pub fn begun(&self) -> bool {
        self.phase != Phase::Head
    }

    /// Has not a single byte come?
    pub fn untouched(&self) -> bool {
        self.phase == Phase::Head && self.raw.is_empty()
    }

    /// Is the whole answer in?
    pub fn whole(&self) -> bool {
        self.phase == Phase::Whole
    }

    /// Takes more bytes.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.raw.extend_from_slice(bytes);
        let mut used = 0;
        while let Some(step) = self.step(used)? {
            used += step;
        }
        self.raw.drain(..used);
        Ok(())
    }

    /// The server has closed the connection: the end of an answer without a length, an error in any other.
    pub fn end(&mut self) -> Result<(), String> {
        match self.phase {
            Phase::ToEnd => {
                self.phase = Phase::Whole;
                Ok(())
            }
            _ => Err("the connection was closed in the middle of an answer".to_owned()),
        }
    }

    /// Ready for the next answer on the same connection.
    pub fn next(&mut self) {
        self.phase = Phase::Head;
        self.status = 0;
        self.body.clear();
        self.close = false;
    }

    /// Reads one element; how many bytes it took, or nothing when more are needed.
    fn step(&mut self, used: usize) -> Result<Option<usize>, String> {
        let rest = &self.raw[used..];
        match self.phase {
            Phase::Head => self.read_head(used),
            Phase::Length(left) => {
                let n = left.min(rest.len());
                self.body.extend_from_slice(&rest[..n]);
                self.phase = if left == n { Phase::Whole } else { Phase::Length(left - n) };
                Ok((n > 0).then_some(n))
            }
            Phase::Chunk(left) => {
                let n = left.min(rest.len());
                self.body.extend_from_slice(&rest[..n]);
                self.phase = if left == n { Phase::ChunkEnd } else { Phase::Chunk(left - n) };
                Ok((n > 0).then_some(n))
            }
            Phase::ToEnd => {
                let n = rest.len();
                self.body.extend_from_slice(rest);
                Ok((n > 0).then_some(n))
            }
            Phase::ChunkSize | Phase::ChunkEnd | Phase::Trailer => {
                let Some(end) = rest.iter().position(|&b| b == b'\n') else {
                    return Ok(None);
                };
                let line = String::from_utf8_lossy(&rest[..end]);
                let line = line.trim();
                self.phase = match self.phase {
                    Phase::ChunkEnd if line.is_empty() => Phase::ChunkSize,
                    Phase::ChunkEnd => {
                        return Err(format!("a chunk is longer than it says: {line}"));
                    }
                    Phase::Trailer if line.is_empty() => Phase::Whole,
                    Phase::Trailer => Phase::Trailer,
                    _ => {
                        let size = line.split(';').next().unwrap_or_default();
                        let size = usize::from_str_radix(size, 16).map_err(|_| format!("not a chunk size: {line}"))?;
                        if size == 0 { Phase::Trailer } else { Phase::Chunk(size) }
                    }
                };
                Ok(Some(end + 1))
            }
            Phase::Whole => Ok(None),
        }
    }

    fn read_head(&mut self, used: usize) -> Result<Option<usize>, String> {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Response::new(&mut fields);
        let size = match head.parse(&self.raw[used..]) {
            Ok(httparse::Status::Complete(size)) => size,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(format!("not an answer: {error}")),
        };
        self.status = head.code.unwrap_or(0);
        self.close = head.version == Some(0);
        self.phase = Phase::ToEnd;
        for field in head.headers.iter() {
            let value = String::from_utf8_lossy(field.value).to_ascii_lowercase();
            match field.name.to_ascii_lowercase().as_str() {
                "content-length" if self.phase == Phase::ToEnd => {
                    let length = value.trim().parse().map_err(|_| format!("not a length: {value}"))?;
                    self.phase = if length == 0 { Phase::Whole } else { Phase::Length(length) };
                }
                "transfer-encoding" if value.contains("chunked") => self.phase = Phase::ChunkSize,
                "connection" if value.contains("close") => self.close = true,
                "connection" if value.contains("keep-alive") => self.close = false,
                _ => {}
            }
        }
        if matches!(self.status, 204 | 304) {
            self.phase = Phase::Whole;
        }
        self.close |= self.phase == Phase::ToEnd;
        Ok(Some(size))
    }
}

#[cfg(test)]
mod tests {
    use super::AnswerReader;

    /// Feeds `wire` in two parts, cut at every place, and expects the same answer each time.
    fn read_cut_anywhere(wire: &str, body: &str, close: bool) {
        for cut in 0..=wire.len() {
            let mut reader = AnswerReader::new();
            reader.take(&wire.as_bytes()[..cut]).unwrap();
            reader.take(&wire.as_bytes()[cut..]).unwrap();
            if !reader.whole() {
                reader.end().unwrap();
            }
            assert_eq!((reader.status, reader.close), (200, close), "cut at {cut}");
            assert_eq!(String::from_utf8_lossy(&reader.body), body, "cut at {cut}");
        }
    }

    #[test]
    fn an_answer_with_a_length() {
        read_cut_anywhere("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "{}", false);
    }

    #[test]
    fn an_answer_in_chunks_with_an_extension_and_a_trailer() {
        let wire = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\n{\"a\r\nA\r\n\":\"bcdef\"}\r\n0\r\nT: 1\r\n\r\n";
        read_cut_anywhere(wire, "{\"a\":\"bcdef\"}", false);
    }

    #[test]
    fn an_answer_up_to_the_end_of_the_connection() {
        read_cut_anywhere("HTTP/1.0 200 OK\r\nServer: x\r\n\r\n: Connected.\n", ": Connected.\n", true);
    }

    #[test]
    fn an_answer_cut_short_is_an_error() {
        let mut reader = AnswerReader::new();
        reader.take(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").unwrap();
        assert!(reader.end().is_err());
    }
}
