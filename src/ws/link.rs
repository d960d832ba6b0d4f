//! The frames of one connection (RFC 6455, 5), in memory: nothing here waits.

use super::frames::Frame;
use crate::gateway::{Incoming, Outgoing, Switching};
use crate::wake::Wake;
use std::io::{self, Read, Write};
use tungstenite::error::{CapacityError, Error, ProtocolError};
use tungstenite::protocol::frame::CloseFrame;
use tungstenite::protocol::{Message, Role, WebSocketConfig, WebSocketContext};

/// How much is read at once. Every connection has a buffer of this size.
const READ_SIZE: usize = 8 * 1024;

/// The longest reason of a close: a control frame has 125 bytes, two of them the code (RFC 6455, 5.5).
const REASON_SIZE: usize = 123;

/// What has come from the client.
pub(crate) enum Received {
    Text(tungstenite::Utf8Bytes),
    Binary(tungstenite::Bytes),
    /// Some frame that is between the two ends.
    Control,
    /// The peer has closed, with this code (1005: none) and reason. The answer is on its way out.
    Close(u16, String),
    /// Nothing more for now.
    Nothing,
    /// The peer has broken the rules: to be closed with this code and reason. Nothing can be read any more.
    Broken(u16, &'static str),
    /// The connection has ended.
    Gone,
}

/// One end of a connection.
pub(crate) struct Link {
    context: WebSocketContext,
    wire: Wire,
}

/// What the frames are read from and written to.
struct Wire {
    input: Box<dyn Incoming>,
    /// What has come before the client was listened to, and how much more of it may come: none after its end.
    early: Vec<u8>,
    room: usize,
    may_read: bool,
    has_read: bool,
    /// Whether the handshake is answered: nothing is written before.
    has_begun: bool,
    /// What has yet to be written begins at `written`.
    unsent: Vec<u8>,
    written: usize,
    /// How many bytes have gone out in all.
    gone: u64,
}

impl Link {
    /// A message may have `most` bytes.
    pub fn new(input: Box<dyn Incoming>, most: u64) -> Self {
        let most = usize::try_from(most).ok();
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_SIZE)
            // Every frame goes to `unsent` at once.
            .write_buffer_size(0)
            .max_message_size(most)
            .max_frame_size(most);
        let wire = Wire {
            input,
            early: Vec::new(),
            room: READ_SIZE,
            may_read: false,
            has_read: false,
            has_begun: false,
            unsent: Vec::new(),
            written: 0,
            gone: 0,
        };
        Self { context: WebSocketContext::new(Role::Server, Some(config)), wire }
    }

    /// What comes when the client has said something.
    pub fn wake(&mut self) -> &mut dyn Wake {
        &mut *self.wire.input
    }

    /// Answers the handshake, once, with the subprotocol that both are to speak. What was said before follows it.
    pub fn begin(&mut self, out: &mut dyn Switching, protocol: Option<&str>) {
        if !std::mem::replace(&mut self.wire.has_begun, true) {
            self.wire.unsent.splice(..0, out.switch(protocol));
        }
    }

    /// Whether more may come too early.
    pub fn has_room_for_early(&self) -> bool {
        self.wire.room > 0
    }

    /// Reads what comes before the client is listened to, to be heard later. False where it has gone without a word.
    pub fn read_early(&mut self) -> bool {
        let Wire { input, early, room, .. } = &mut self.wire;
        if *room > 0 {
            let begin = early.len();
            early.resize(begin + *room, 0);
            let read = input.read_now(&mut early[begin..]);
            early.truncate(begin + *read.as_ref().unwrap_or(&0));
            *room = match read {
                Ok(1..) => READ_SIZE - early.len(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => *room,
                _ => 0,
            };
        }
        *room > 0 || !early.is_empty()
    }

    /// Lets [`Link::hear`] read once more.
    pub fn let_read(&mut self) {
        self.wire.may_read = true;
    }

    /// The next thing that was said.
    pub fn hear(&mut self) -> Received {
        let heard = self.context.read(&mut self.wire);
        if let Ok(Message::Close(_)) = heard {
            // The answer goes out with the next thing that is done, which there may not be.
            let _ = self.context.flush(&mut self.wire);
        }
        match heard {
            Ok(Message::Text(text)) => Received::Text(text),
            Ok(Message::Binary(bytes)) => Received::Binary(bytes),
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => Received::Control,
            Ok(Message::Close(None)) => Received::Close(1005, String::new()),
            Ok(Message::Close(Some(CloseFrame { code, reason }))) => Received::Close(code.into(), reason.to_string()),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Received::Nothing,
            Err(Error::Utf8(_)) => Received::Broken(1007, "Text must be UTF-8."),
            Err(Error::Capacity(CapacityError::MessageTooLong { .. })) => {
                Received::Broken(1009, "The message is too long.")
            }
            Err(
                Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)
                | Error::Io(_)
                | Error::ConnectionClosed
                | Error::AlreadyClosed,
            ) => Received::Gone,
            Err(_) => Received::Broken(1002, "This is against RFC 6455."),
        }
    }

    /// Whether any bytes have come since it was asked last, of whole frames or not.
    pub fn has_read(&mut self) -> bool {
        std::mem::take(&mut self.wire.has_read)
    }

    /// Sends a message. After a close it is dropped.
    pub fn send(&mut self, frame: Frame<'_>) {
        self.say(match frame {
            Frame::Text(text) => Message::text(text),
            Frame::Binary(bytes) => Message::binary(bytes.to_owned()),
        });
    }

    pub fn ping(&mut self) {
        self.say(Message::Ping(tungstenite::Bytes::new()));
    }

    /// Begins to close: nothing is sent after it.
    pub fn close(&mut self, code: u16, reason: &str) {
        let end = (0..=REASON_SIZE.min(reason.len())).rev().find(|end| reason.is_char_boundary(*end)).unwrap_or(0);
        let frame = CloseFrame { code: code.into(), reason: reason[..end].into() };
        self.say(Message::Close(Some(frame)));
    }

    fn say(&mut self, message: Message) {
        if self.context.can_write() {
            // Writing to memory does not fail; what is sent after a close is dropped.
            let _ = self.context.write(&mut self.wire, message);
            let _ = self.context.flush(&mut self.wire);
        }
    }

    /// How many bytes wait for the client to take them.
    pub fn unsent(&self) -> usize {
        self.wire.unsent.len() - self.wire.written
    }

    /// Whether some of them may be written.
    pub fn has_to_write(&self) -> bool {
        self.wire.has_begun && self.unsent() > 0
    }

    /// How many bytes the way to the client has taken so far.
    pub fn gone(&self) -> u64 {
        self.wire.gone
    }

    /// Writes some of it, where it [has to](Link::has_to_write).
    pub fn write(&mut self, out: &mut dyn Outgoing) {
        let Wire { unsent, written, gone, .. } = &mut self.wire;
        let count = out.write(&unsent[*written..]);
        *written += count;
        *gone += count as u64;
        if *written == unsent.len() {
            unsent.clear();
            unsent.shrink_to(READ_SIZE);
            *written = 0;
        } else if *written > READ_SIZE && *written >= unsent.len() / 2 {
            // A client that is always a little behind must not have everything kept that it ever got.
            unsent.drain(..*written);
            *written = 0;
        }
    }
}

/// Whether somebody may close with this code (RFC 6455, 7.4).
pub(crate) fn is_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = if !self.early.is_empty() {
            let count = self.early.as_slice().read(buffer)?;
            self.early.drain(..count);
            count
        } else if std::mem::take(&mut self.may_read) {
            self.input.read_now(buffer)?
        } else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        self.has_read |= count > 0;
        Ok(count)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.unsent.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::task::{Context, Poll};

    /// Bytes that have come, and their end.
    struct Said(Vec<u8>);

    impl Wake for Said {
        #[cfg(feature = "serve")]
        fn poll_wake(&mut self, _: &mut Context<'_>) -> Poll<()> {
            Poll::Ready(())
        }
    }

    impl Incoming for Said {
        fn poll_read(&mut self, _: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(self.read_now(buffer))
        }

        fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0.as_slice().read(buffer)?;
            self.0.drain(..count);
            Ok(count)
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_of_frames_panic(
            pieces in proptest::collection::vec(prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..20),
                // Whole frames with a mask of zeros, mostly small.
                (any::<u8>(), 0..126_u8).prop_map(|(opcode, length)| {
                    [&[opcode, 0x80 | length, 0, 0, 0, 0], &vec![b'x'; length.into()][..]].concat()
                }),
                (prop::sample::select(vec![0x01, 0x81, 0x00, 0x80, 0x82, 0x89, 0x8a, 0x88]), 0..9_u8).prop_map(
                    |(opcode, length)| [&[opcode, 0x80 | length, 0, 0, 0, 0], &b"\x03\xe8\xc3\xa9bcdef"[..length.into()]].concat()
                ),
            ], 0..12),
        ) {
            let mut link = Link::new(Box::new(Said(pieces.concat())), 100);
            let mut heard = 0;
            // Every frame is heard once, and then the end.
            for _ in 0..1000 {
                link.let_read();
                match link.hear() {
                    Received::Gone => break,
                    Received::Text(text) => prop_assert!(text.len() <= 100),
                    Received::Binary(bytes) => prop_assert!(bytes.len() <= 100),
                    Received::Broken(code, reason) => {
                        link.close(code, reason);
                        prop_assert!(link.unsent() > 0);
                        break;
                    }
                    Received::Control | Received::Close(..) | Received::Nothing => {}
                }
                heard += 1;
            }
            prop_assert!(heard < 1000, "it does not end");
        }
    }

    #[test]
    fn a_long_reason_is_cut_where_a_character_ends() {
        let mut link = Link::new(Box::new(io::empty()), 100);
        link.close(4000, &"\u{20ac}".repeat(100));
        assert_eq!(link.wire.unsent[..4], [0x88, 125, 0x0f, 0xa0]);
        assert_eq!(link.wire.unsent[4..], *"\u{20ac}".repeat(41).as_bytes());
        link.send(Frame::Text("too late"));
        assert_eq!(link.unsent(), 127);
    }
}
