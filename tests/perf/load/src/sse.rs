//! Cuts events out of a stream (the `text/event-stream` of the HTML standard).

/// One event.
#[derive(Debug, PartialEq)]
pub struct Event {
    pub id: Option<String>,
    pub name: Option<String>,
    pub data: String,
}

/// Takes the bytes of a stream.
#[derive(Default)]
pub struct EventReader {
    raw: Vec<u8>,
    id: Option<String>,
    name: Option<String>,
    data: Option<String>,
}

impl EventReader {
    /// Takes more bytes and hands every event that is whole to `each`.
    pub fn take(&mut self, bytes: &[u8], mut each: impl FnMut(Event)) {
        self.raw.extend_from_slice(bytes);
        let mut used = 0;
        while let Some(end) = self.raw[used..].iter().position(|&b| b == b'\n') {
            let line = String::from_utf8_lossy(&self.raw[used..used + end]).into_owned();
            used += end + 1;
            if let Some(event) = self.line(line.trim_end_matches('\r')) {
                each(event);
            }
        }
        self.raw.drain(..used);
    }

    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let (id, name) = (self.id.take(), self.name.take());
            return self.data.take().map(|data| Event { id, name, data });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.id = Some(value.to_owned()),
            "event" => self.name = Some(value.to_owned()),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            _ => {} // a comment, which has no field name, or `retry`
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, EventReader};

    #[test]
    fn events_between_comments_cut_anywhere() {
        let wire = ": Connected.\nid: 7\ndata: {\"body\":1}\n\n: sse-keep-alive\nevent: relay_event\r\ndata: a\r\ndata: b\r\n\r\n";
        for cut in 0..=wire.len() {
            let mut reader = EventReader::default();
            let mut events = Vec::new();
            reader.take(&wire.as_bytes()[..cut], |event| events.push(event));
            reader.take(&wire.as_bytes()[cut..], |event| events.push(event));
            assert_eq!(
                events,
                [
                    Event { id: Some("7".into()), name: None, data: "{\"body\":1}".into() },
                    Event { id: None, name: Some("relay_event".into()), data: "a\nb".into() },
                ],
                "cut at {cut}"
            );
        }
    }
}
