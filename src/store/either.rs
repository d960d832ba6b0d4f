//! What a type does that is of either home.

/// Has it done by whichever it is, for a stream. Where there is one home, its future is handed on as it is: a state machine around
/// each would make relay.cgi larger.
macro_rules! by_either {
    ($one:expr, $it:ident => $in_files:expr, $in_redis:expr) => {{
        #[cfg(not(feature = "redis"))]
        {
            let Self::Files($it) = $one;
            $crate::workers::stream_at_disk(move || $in_files)
        }
        #[cfg(feature = "redis")]
        async move {
            match $one {
                Self::Files($it) => $crate::workers::stream_at_disk(move || $in_files).await,
                Self::Redis($it) => $in_redis.await,
            }
        }
    }};
}

/// The same where nothing is waited for.
macro_rules! of_either {
    ($one:expr, $it:ident => $do:expr) => {
        match $one {
            Self::Files($it) => $do,
            #[cfg(feature = "redis")]
            Self::Redis($it) => $do,
        }
    };
}

pub(super) use {by_either, of_either};
