//! What wakes somebody who waits in a topic, and what is done for the topic meanwhile.

use super::ear::Ear;
use super::process::Process;
pub use super::servers::is_shared;
use super::topic::{Place, Topic};
use crate::store::error::Error;
use crate::store::remote::Remote;
use crate::wake::Ready;
use std::pin::Pin;
use std::sync::Arc;
#[cfg(feature = "serve")]
use {
    super::ear::ROUND,
    crate::clock::instant,
    crate::wake::wait,
    std::sync::{Weak, atomic::Ordering},
    std::time::Duration,
};

/// What is being done for a topic.
pub type Caring<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What is done for a topic in which somebody of this process waits.
pub trait Care: Send + Sync {
    /// Says that those that wait are there, and tells the topic what has become of it.
    fn tend<'a>(&'a self, topic: &'a Topic) -> Caring<'a, Result<(), Error>>;

    /// Says that only so many wait there now.
    fn leave(&self, left: usize) -> Caring<'_, ()>;
}

/// What wakes somebody who waits in a topic.
pub struct Subscription {
    pub place: Place,
    door: Door,
}

enum Door {
    /// Under `serve` one listens for all, and a task looks after the topic.
    #[cfg(feature = "serve")]
    Shared,
    /// A program for one request does so itself.
    Own {
        /// `None` while there is no connection.
        ear: Option<Ear>,
        channels: Vec<String>,
        care: Arc<dyn Care>,
    },
}

impl Drop for Subscription {
    fn drop(&mut self) {
        match &self.door {
            #[cfg(feature = "serve")]
            Door::Shared => {}
            Door::Own { care, .. } => crate::gateway::run_blocking(care.leave(self.place.topic.waiting() - 1)),
        }
    }
}

impl Subscription {
    /// Begins to listen, for a program of one request to these channels.
    pub async fn begin(
        process: &Arc<Process>,
        place: Place,
        channels: Vec<String>,
        care: Arc<dyn Care>,
    ) -> Result<Self, Error> {
        #[cfg(feature = "serve")]
        if is_shared() {
            let topic = &place.topic;
            if !topic.is_kept.swap(true, Ordering::Relaxed) {
                process.ears.listen(topic, 0);
                tokio::spawn(keep(process.clone(), topic.channel.clone(), care, Arc::downgrade(topic)));
            }
            return Ok(Self { place, door: Door::Shared });
        }
        let mut subscription = Self { place, door: Door::Own { ear: None, channels, care } };
        subscription.open(process).await?;
        Ok(subscription)
    }

    /// Connects, where there is no connection that should be.
    async fn open(&mut self, process: &Process) -> Result<(), Error> {
        if let Door::Own { ear, channels, .. } = &mut self.door
            && ear.is_none()
        {
            *ear = Some(Ear::open(&process.servers, channels, &self.place.topic).await?);
        }
        Ok(())
    }

    /// What is ready when something was told.
    pub fn wake(&self) -> Option<Ready<'_>> {
        match &self.door {
            #[cfg(feature = "serve")]
            Door::Shared => Some(self.place.sleeper.wake()),
            Door::Own { ear, .. } => ear.as_ref().map(Ear::wake),
        }
    }

    /// Hears what was told. Whether another has taken the place.
    pub fn hear(&mut self) -> bool {
        self.listen();
        self.place.sleeper.hear()
    }

    /// The same. Whether anything was told, or may not have been.
    pub fn is_called(&mut self) -> bool {
        self.listen();
        self.place.sleeper.is_called()
    }

    fn listen(&mut self) {
        if let Door::Own { ear: Some(ear), .. } = &mut self.door {
            let heard = ear.hear(&self.place.topic);
            self.go_on(heard);
        }
    }

    /// Where nothing will be told any more, there is no connection.
    fn go_on(&mut self, heard: Result<(), Remote>) {
        if let (Err(remote), Door::Own { ear, .. }) = (heard, &mut self.door) {
            Error::from(remote).log();
            *ear = None;
            self.place.topic.note_listening(false);
        }
    }

    /// Does what a task does under `serve`.
    pub async fn tend(&mut self, process: &Process) -> Result<(), Error> {
        if let Door::Own { ear: Some(ear), .. } = &mut self.door {
            let heard = ear.tend(&self.place.topic).await;
            self.go_on(heard);
        }
        self.open(process).await?;
        match &mut self.door {
            #[cfg(feature = "serve")]
            Door::Shared => Ok(()),
            Door::Own { care, ear, .. } => {
                let topic = &self.place.topic;
                care.tend(topic).await?;
                // Another server has taken over from one that was stopped, or cut off, and is listened to in the next round.
                if ear.take_if(|ear| !ear.is_right(&process.servers, topic)).is_some() {
                    topic.note_listening(false);
                }
                Ok(())
            }
        }
    }
}

/// Looks after a topic in which somebody of this process waits.
#[cfg(feature = "serve")]
async fn keep(process: Arc<Process>, channel: String, care: Arc<dyn Care>, topic: Weak<Topic>) {
    /// How soon a server is asked again that tells nothing.
    const SOON: Duration = Duration::from_millis(250);
    let (mut next_round, mut attempt) = (instant() + ROUND, 0);
    let Some(call) = topic.upgrade().map(|topic| topic.call.clone()) else { return };
    loop {
        let left = next_round.saturating_duration_since(instant());
        if !left.is_zero() && topic.upgrade().is_none_or(|topic| topic.listening_since().is_some()) {
            wait(&mut [&mut Ready::to_hear(&call)], left).await;
        } else {
            tokio::time::sleep(SOON).await;
        }
        call.hear();
        let Some(topic) = topic.upgrade() else { break };
        if topic.listening_since().is_some() {
            attempt = 0;
        } else {
            attempt += 1;
            process.ears.listen(&topic, attempt);
        }
        let now = instant();
        // Where that fails, whoever waits finds out when it reads; and it is soon said again: it must not be taken for gone.
        if now >= next_round && care.tend(&topic).await.is_ok() {
            next_round = now + ROUND;
        }
    }
    // Another may have come.
    if process.topics.get(&channel).is_none() {
        process.ears.leave(&channel);
        care.leave(0).await;
    }
}
