//! The registered users of a bus.

use super::super::members::{Cursor, Entry, Line, Table};
use super::super::{Error, UNUSED_TIME};
use super::{Bus, USERS, touch_after};
use crate::clock::{has_passed, now_ms};
use crate::hex;
use crate::store::buses::{Proof, Refused, User};
use serde::{Deserialize, Serialize};

/// What is kept of a registered user.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Registered {
    /// The number.
    number: String,
    /// What it signs with.
    secret: String,
    /// The number of the last signed post; 0 before the first.
    last: u64,
    /// When it was seen last, as far as that was worth a note (ms since 1970).
    seen: u64,
}

impl Line for Registered {
    fn key(&self) -> &str {
        &self.number
    }
}

impl Bus<'_> {
    fn users(&self) -> Result<Option<Table<Registered>>, Error> {
        Table::open(&self.folder.beside(USERS))
    }

    /// A fresh registered user and its key.
    pub(super) fn register(&mut self) -> Result<(User, String), Refused> {
        let most = self.settings.max_clients;
        let mut users = Table::<Registered>::open_or_make(&self.folder.beside(USERS))?;
        let all = users.all()?;
        if all.len() as u64 >= most {
            // The oldest that has never signed and has not been seen for a while gives way. They were counted up.
            let unused = all.iter().filter(|user| user.line.last == 0 && has_passed(user.line.seen, UNUSED_TIME));
            let oldest = unused.min_by_key(|user| user.line.number.parse::<u64>().unwrap_or(0));
            users.free(oldest.ok_or(Refused::TooManyUsers(most))?.slot)?;
        }
        let user = User(self.record.first + 1 + 2 * self.record.registered);
        self.record.registered += 1;
        // The number first: whoever is killed in between has given it to nobody.
        self.folder.write(&self.record)?;
        let key = hex::random(32).map_err(Error::from)?;
        let line = Registered { number: user.0.to_string(), secret: key.clone(), last: 0, seen: now_ms() };
        users.insert(&line, Cursor::default())?;
        Ok((user, key))
    }

    /// What is kept of a registered user; `None` where there is no such one.
    pub(super) fn registered(&self, user: User) -> Result<Option<Entry<Registered>>, Error> {
        if !user.is_registered() {
            return Ok(None);
        }
        self.users()?.map_or(Ok(None), |users| users.find(&user.0.to_string()))
    }

    /// Whether this bus has given out the number. A registered user that has not been seen for as long as the bus may be
    /// away is not known any more. One that is known counts as seen.
    pub(super) fn knows(&self, user: User) -> Result<bool, Error> {
        if !user.is_registered() {
            return Ok(user.0.checked_sub(self.record.first).is_some_and(|after| after / 2 < self.record.plain));
        }
        let Some(mut registered) = self.registered(user)? else { return Ok(false) };
        if has_passed(registered.line.seen, touch_after(self.settings)) {
            registered.line.seen = now_ms();
            self.write(&registered)?;
        }
        Ok(true)
    }

    fn write(&self, user: &Entry<Registered>) -> Result<(), Error> {
        self.users()?.ok_or(Error::Busy)?.update(user.slot, &user.line)
    }

    /// Whether a post is the user's own: signed with its key, and no repetition.
    pub(super) fn check(&self, mut user: Entry<Registered>, proof: Option<Proof<'_>>) -> Result<(), Refused> {
        let proof = proof.ok_or(Refused::NotSigned)?;
        if !proof.is_by(&user.line.secret) {
            return Err(Refused::WrongSignature);
        }
        if proof.n <= user.line.last {
            return Err(Refused::StaleNumber(user.line.last));
        }
        (user.line.last, user.line.seen) = (proof.n, now_ms());
        Ok(self.write(&user)?)
    }

    /// Forgets users that have not been seen for so long.
    pub(super) fn forget_users(&self) -> Result<(), Error> {
        let lifetime = self.settings.bus_lifetime.max(self.settings.message_lifetime);
        let Some(users) = self.users()? else { return Ok(()) };
        for user in users.all()?.iter().filter(|user| has_passed(user.line.seen, lifetime)) {
            users.free(user.slot)?;
        }
        Ok(())
    }
}
