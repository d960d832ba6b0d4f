//! What is made of a record for those that read it.

use std::sync::OnceLock;

/// What a protocol makes of a record: once for all that read it in this process, in the same way.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Made(OnceLock<Box<[u8]>>);

impl Made {
    /// Adds what `encode` writes to `out`; where somebody has made it already (and has kept it in `made`), just that.
    pub fn write(made: Option<&Self>, out: &mut Vec<u8>, encode: impl FnOnce(&mut Vec<u8>)) {
        let Some(Self(made)) = made else { return encode(out) };
        let bytes = made.get_or_init(|| {
            let mut bytes = Vec::new();
            encode(&mut bytes);
            bytes.into()
        });
        out.extend_from_slice(bytes);
    }
}
